#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The table of bars of what is served, from bench/run's results.jsonl: bench/nbd.py's and
bench/guest.py's lines. Habits as in report.py.

    report_nbd.py RESULTS.jsonl
"""
from report import at_least, at_most, number, report


def rates(results, what, side, key='iops'):
    return results.values(key, 'nbd', what=what, side=side)


def compare(table, results, name, part, what, reference, bar, least, unit='k/s', scale=1e3, key='iops',
            side='vmimg'):
    table.compare(name, part, rates(results, what, side, key), rates(results, what, reference, key),
                  unit, scale, bar, at_least(least))


def server_cpu(table, results, name, part, what, reference):
    ours, other = (rates(results, what, side, 'server_cpu_us') for side in ('vmimg', reference))
    table.compare(name, part, ours, other, 'us', 1, '', at_most(0))


def head_rows(table, results):
    for what, text in (('randread_qd1', 'reads, QD1'), ('randwrite_qd1', 'writes, QD1'),
                       ('randread_qd32', 'reads, QD32'), ('randwrite_qd32', 'writes, QD32')):
        for side in ('raw', 'qcow2'):
            least = 1.6 if side == 'qcow2' and what.endswith('32') else 1.3
            for suffix, client in (('', ''), ('_fio', ', by fio')):
                compare(table, results, f'4 KiB random {text}, full head{client}; qemu-storage-daemon {side}',
                        'nbd-head', what + suffix, side, f'>= {least} x', least)
        compare(table, results, f'4 KiB random {text}, full head; a file through io_uring, no server',
                'nbd-head', what, 'none', '', 0)
        server_cpu(table, results, f'{text}: CPU of the server a request; qemu-storage-daemon raw',
                   'nbd-head', what, 'raw')


def cost_rows(table, results):
    for depth, rw in ((32, 'read'), (32, 'write'), (1, 'read'), (1, 'write')):
        bar = '>= 1.0 x (aim 1.5)' if depth == 32 else ''
        compare(table, results, f'4 KiB random {rw}s in the page cache, QD{depth}; nbdkit file', 'nbd-cost',
                f'cached_rand{rw}_qd{depth}', 'nbdkit', bar, 1.0)


def first_rows(table, results):
    for side, name, least in (('qcow2', 'qcow2', 3), ('extended', 'qcow2, extended L2', 1.8)):
        compare(table, results, 'first 4 KiB writes after a snapshot, QD32; qemu-storage-daemon with a '
                f'fresh overlay, {name}', 'nbd-first', 'first_write_qd32', side, f'>= {least} x', least)


def sequential_rows(table, results):
    for side, where in (('vmimg', 'disk without snapshots'), ('head', 'head written in order')):
        compare(table, results, f'64 KiB sequential reads, QD8, one connection, {where}; the file through '
                'io_uring', 'nbd-sequential', 'read_64k_qd8', 'raw', '>= 0.9 x', 0.9, 'MB/s', 1e6,
                'bandwidth', side)


def stall_rows(table, results):
    lines = results.pick('nbd', what='stall')
    for disks in sorted({line['disks'] for line in lines}) or [0]:
        ours, peer = ([line for line in lines if line['disks'] == disks and line['side'] == side]
                      for side in ('vmimg', 'qsd'))
        during, without, other = (sum((line[key] for line in side), []) for side, key in
                                  ((ours, 'with_ns'), (ours, 'without_ns'), (peer, 'with_ns')))
        name = f'longest write of {min(disks, 4)} QD1 clients while {disks} disks are cut; '
        table.compare(f'{name}windows without a snapshot', 'nbd-stall', during, without, 'ms', 1e6,
                      '<= 2 x', at_most(2))
        bar = '<= 1/10' if disks == 256 else ''
        table.compare(f"{name}QEMU's transaction", 'nbd-stall', during, other, 'ms', 1e6, bar,
                      at_most(0.1))


def scale_rows(table, results):
    lines = results.pick('nbd', what='scale')
    name = f'{number(lines[0]["exports"])} exports, {lines[0]["connections"]} connections' if lines else \
        'many exports and connections'
    table.limit(f'{name}: start', 'nbd-scale', [line['start_s'] for line in lines], 's', 1, '< 1 s', 0.9999)
    table.limit(f'{name}: memory at rest', 'nbd-scale', [line['resident'] for line in lines], 'MiB', 1 << 20,
                '< 256 MiB', (256 << 20) - 1)


def guest_rows(table, results):
    lines = results.pick('guest')
    machine = 'KVM' if any('kvm' in line['accelerator'] for line in lines) else 'emulated processor'
    for what, text in (('randread_qd1', 'reads, QD1'), ('randwrite_qd1', 'writes, QD1'),
                       ('randread_qd32', 'reads, QD32'), ('randwrite_qd32', 'writes, QD32')):
        vhost, nbd, own = (results.values('iops', 'guest', what=what, side=side)
                           for side in ('vhost-user-blk', 'nbd', 'qcow2'))
        name = f'in a guest ({machine}), 4 KiB random {text}'
        table.compare(f"{name}, vhost-user-blk; QEMU's own qcow2", 'guest', vhost, own, 'k/s', 1e3,
                      '>= 1.0 x', at_least(1.0))
        table.compare(f"{name}, NBD; QEMU's own qcow2", 'guest', nbd, own, 'k/s', 1e3, '', at_least(1.0))


if __name__ == '__main__':
    report(head_rows, cost_rows, first_rows, sequential_rows, stall_rows, scale_rows, guest_rows)
