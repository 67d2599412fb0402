#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The table of bars from bench/run's results.jsonl, as Markdown on standard output.

A figure is the median of its rounds, with the least and the greatest behind it; a ratio is that of
the two medians. A row without figures says why; it never counts as met.

    report.py RESULTS.jsonl
"""
import json, statistics, sys


class Results:
    def __init__(self, path):
        with open(path) as lines:
            self.lines = [json.loads(line) for line in lines]
        self.scale = self.pick('scale')[0]
        self.reasons = {line['part']: f'skipped: {line["reason"]}' for line in self.pick('skipped')}
        self.reasons.update({line['part']: 'failed' for line in self.pick('failed')})

    def pick(self, row, **like):
        return [line for line in self.lines if line['row'] == row and
                all(line.get(key) == value for key, value in like.items())]

    def values(self, key, row, **like):
        return [line[key] for line in self.pick(row, **like)]

    def group(self, series, disks, key):
        """Medians of group.c's runs."""
        return [line[key]['median'] for line in self.pick('group', series=series, disks=disks)]


def number(value):
    if value >= 1000:
        return f'{value:,.0f}'
    return f'{value:.3g}' if value < 100 else f'{value:.0f}'


def spread(values, unit, scale=1):
    scaled = [value / scale for value in values]
    text = f'{number(statistics.median(scaled))} {unit}'
    if len(scaled) > 1:
        text += f' ({number(min(scaled))} - {number(max(scaled))})'
    return text


class Table:
    def __init__(self, results):
        self.results = results
        self.rows = []

    def add(self, name, part, ours, reference, ratio, bar, met):
        verdict = 'yes' if met else '**no**'
        self.rows.append((name, ours, reference, ratio, bar, verdict if bar else ''))

    def missing(self, name, part, bar):
        reason = self.results.reasons.get(part, 'not measured')
        self.rows.append((name, reason, '', '', bar, 'not measured' if bar else ''))

    def compare(self, name, part, ours, reference, unit, scale, bar, judge):
        """judge: of the ratio ours / reference."""
        if not ours or not reference:
            return self.missing(name, part, bar)
        ratio = statistics.median(ours) / statistics.median(reference)
        self.add(name, part, spread(ours, unit, scale), spread(reference, unit, scale),
                 f'{ratio:.3g}', bar, judge(ratio))

    def limit(self, name, part, ours, unit, scale, bar, most):
        if not ours:
            return self.missing(name, part, bar)
        self.add(name, part, spread(ours, unit, scale), '', '', bar,
                 statistics.median(ours) <= most)

    def print(self):
        print('| what | vmimg | reference | ratio | bar | met |')
        print('|---|---|---|---|---|---|')
        for row in self.rows:
            print('| ' + ' | '.join(row) + ' |')


def at_least(bound):
    return lambda ratio: ratio >= bound


def at_most(bound):
    return lambda ratio: ratio <= bound


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


def main():
    results = Results(sys.argv[1])
    scale = results.scale
    table = Table(results)
    pair_rows(table, results)
    chain_rows(table, results)
    group_rows(table, results)
    memory_rows(table, results)
    print(f'\n{scale["cpus"]} CPUs, Linux {scale["kernel"]}, {scale["file_system"]}, direct I/O, '
          f'{scale["rounds"]} rounds: median (least - greatest).\n')
    if scale['quick']:
        print('**A quick run: it shows that everything runs; the figures mean nothing.**\n')
    table.print()
    verdicts = [row[-1] for row in table.rows if row[-1]]
    print(f'\n{verdicts.count("yes")} of {len(verdicts)} bars met.')


if __name__ == '__main__':
    if len(sys.argv) != 2:
        sys.exit('usage: report.py RESULTS.jsonl')
    main()
