#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The table of bars of the engine. Habits as in report.py.

    report_engine.py RESULTS.jsonl
"""
import statistics

from report import at_least, at_most, report, spread


def pair_rows(table, results):
    def sides(key, row, label='main'):
        return [results.values(key, row, label=label, side=side) for side in ('vmimg', 'raw')]

    # Without direct I/O a figure is of the page cache, and no bar.
    buffered = [line for line in results.lines if line.get('direct') is False]
    if buffered:
        results.reasons.update(pair='no direct I/O here')
        results.lines = [line for line in results.lines if line not in buffered]
    fs = results.scale['file_system']
    table.compare(f'4 KiB random first writes, QD32, {fs}; raw: overwrites', 'pair',
                  *sides('iops', 'first_write_qd32'), 'k/s', 1e3, '>= 1.0 x (aim 1.3)',
                  at_least(1.0))
    table.compare('the same on XFS (loop device, direct I/O)', 'xfs',
                  *sides('iops', 'first_write_qd32', 'xfs'), 'k/s', 1e3, '>= 0.8 x',
                  at_least(0.8))
    for row, name in (('overwrite_qd1', 'overwrites in the head, QD1'),
                      ('overwrite_qd32', 'overwrites in the head, QD32'),
                      ('read_qd1', 'reads of a full head, QD1'),
                      ('read_qd32', 'reads of a full head, QD32')):
        table.compare(name, 'pair', *sides('iops', row), 'k/s', 1e3, '>= 0.95 x',
                      at_least(0.95))
        ours, raw = sides('cpu_us', row)
        bar = '<= raw + 2 us'
        if not ours or not raw:
            table.missing(f'{name}: CPU a request', 'pair', bar)
            continue
        more = statistics.median(ours) - statistics.median(raw)
        table.add(f'{name}: CPU a request', 'pair', spread(ours, 'us'), spread(raw, 'us'),
                  f'{more:+.2f} us', bar, more <= 2)
    table.compare('first 4 KiB write after a snapshot, QD1, median; raw: overwrite', 'pair',
                  *sides('p50_ns', 'first_write_qd1'), 'us', 1e3, '<= 1.4 x', at_most(1.4))
    table.compare('first 4 KiB write + flush, QD1; raw: overwrite + fdatasync', 'pair',
                  *sides('each_ns', 'first_write_flush_qd1'), 'us', 1e3, '<= 3 x (aim 1.5)',
                  at_most(3))


def chain_rows(table, results):
    depths = results.scale['depths']
    for iodepth in (1, 32):
        for depth in depths[1:]:
            ours, one = (results.values('iops', 'chain', depth=d, iodepth=iodepth)
                         for d in (depth, depths[0]))
            last = depth == depths[-1]
            name = f'random reads, QD{iodepth}, chain of {depth:,}; reference: of {depths[0]}'
            table.compare(name, 'chain', ours, one, 'k/s', 1e3,
                          '>= 0.9 x' if last else '', at_least(0.9))


def group_rows(table, results):
    disks, more = results.scale['disks'], results.scale['more']
    p1 = results.values('passed', 'p1')
    for count in (1, more):
        table.limit(f'the cut, {count:,} disks, under load', 'group',
                    results.group('long', count, 'cut_ns'), 'ns', 1, '< 10 us', 9999)
    if p1:
        table.add('P1 test in the same run', 'p1', 'passed' if all(p1) else 'failed', '', '',
                  'passes', all(p1))
    else:
        table.missing('P1 test in the same run', 'p1', 'passes')
    for count in (disks, more):
        during, without = (results.group('long', count, key)
                           for key in ('longest_write_ns', 'longest_write_without_ns'))
        short = bool(during) and statistics.median(during) < 10e6
        name = (f'longest write of {min(count, 4)} QD1 writers, {count:,} disks, prepare to '
                'durable; reference: windows without a snapshot')
        table.compare(name, 'group', during, without, 'ms', 1e6, '<= 2 x and < 10 ms',
                      at_most(2 if short else 0))
    idle, load, standby = (results.group(series, disks, 'total_ns')
                           for series in ('idle', 'load', 'standby'))
    peer, bare = (results.values(key, 'peer', disks=disks)
                  for key in ('total_ns', 'transaction_ns'))
    what = f'CreateSnapshot of {disks} disks'
    table.compare(f'{what}, idle; qemu-storage-daemon: create + add + transaction', 'peer', idle,
                  peer, 'ms', 1e6, '<= 1/30 (0.0333)', at_most(1 / 30))
    table.compare(f'{what}, under load; reference: idle', 'group', load, idle, 'ms', 1e6,
                  '<= 2 x', at_most(2))
    table.compare(f'{what}, standby overlays; qemu-storage-daemon: bare transaction', 'peer',
                  standby, bare, 'ms', 1e6, '<= 1/10', at_most(1 / 10))


def memory_rows(table, results):
    for disk, bar in (('full', '<= 16 bytes'), ('scattered', '')):
        lines = results.pick('memory', disk=disk)
        where = 'a full head' if disk == 'full' else 'written anywhere in 1 TiB'
        name = f'memory a block written in the head, {where}; reference: growth of the process'
        if not lines:
            table.missing(name, 'memory', bar)
            continue
        line = lines[0]
        each = (line['map_bytes'] - line['map_bytes_empty']) / line['blocks']
        table.add(name, 'memory', f'{each:.1f} bytes',
                  f'{line["resident_growth"] / line["blocks"]:.1f} bytes', '', bar,
                  each <= 16 or disk != 'full')
    empty = results.values('map_bytes', 'memory', disk='empty')
    table.limit('memory of a 1 TiB disk with an empty head', 'memory', empty, 'KiB', 1024,
                '<= 1 MiB', 1 << 20)


if __name__ == '__main__':
    report(pair_rows, chain_rows, group_rows, memory_rows, how='direct I/O, ')
