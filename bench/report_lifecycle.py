#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The table of what becomes of snapshots: bench/lifecycle.py's lines. Habits as in report.py.

    report_lifecycle.py RESULTS.jsonl
"""
from report import at_least, at_most, number, report


def flat(lines, key):
    return [value for line in lines for value in line[key]]


def delete_rows(table, results):
    for what, name in (('many', '{disks} disks with {mib} MiB of changes each'),
                       ('big', '{disks} disk with {mib} MiB')):
        lines = results.pick('lifecycle', what=what)
        scale = lines[0] if lines else {'disks': 64 if what == 'many' else 1,
                                        'mib': 64 if what == 'many' else 4096}
        name = 'a snapshot of ' + name.format(**scale)
        table.limit(f'delete {name}, durable', 'delete', [line['took_ns'] for line in lines], 'ms', 1e6,
                    '< 100 ms', 1e8 - 1)
        table.compare(f'longest guest write while {name} is deleted; windows without', 'delete',
                      [line['longest_call_ns'] for line in lines],
                      [line['longest_without_ns'] for line in lines], 'ms', 1e6, '<= 2 x', at_most(2))
        table.compare('and while its space is given back, default limit; windows with the fold held still',
                      'delete', flat(lines, 'longest_fold_ns'), flat(lines, 'longest_still_ns'), 'ms', 1e6,
                      '<= 2 x', at_most(2))
        table.compare('p99 of guest writes meanwhile; the same windows', 'delete',
                      flat(lines, 'p99_fold_ns'), flat(lines, 'p99_still_ns'), 'us', 1e3, '<= 1.5 x',
                      at_most(1.5))


def fold_rows(table, results):
    ours, peer = (results.values('bytes_per_s', 'lifecycle', what='fold', side=side)
                  for side in ('vmimg', 'cp'))
    table.compare('fold without a limit, cold; `cp --reflink=never` and a sync of the same bytes', 'fold', ours,
                  peer, 'MB/s', 1e6, '>= 0.8 x', at_least(0.8))
    delete, both, commit = (results.values('took_ns', 'lifecycle', what='commit', side=side)
                            for side in ('delete', 'delete_fold', 'commit'))
    mib = number((results.values('mib', 'lifecycle', what='commit') or [1024])[0])
    name = f'of a change set of {mib} MiB; `qemu-img commit`'
    table.compare(f'delete {name}', 'fold', delete, commit, 'ms', 1e6, '<= 1/20 (0.05)', at_most(1 / 20))
    table.compare(f'delete and fold {name}', 'fold', both, commit, 'ms', 1e6, '<= 1.0 x', at_most(1))


def diff_rows(table, results):
    peer = results.pick('diff_peer')
    scale = ''
    if peer:
        scale = (f'; qemu-img of {peer[0]["ranges"]:,} ranges: map {number(peer[0]["map_ms"])} ms, '
                 f'compare {number(peer[0]["compare_ms"])} ms')
    for of, bar in (('two snapshots, one layer', 50), ('two snapshots, sixteen layers', 50),
                    ('the head, of an attached disk', 0)):
        lines = results.pick('diff', of=of)
        count = f'{lines[0]["ranges"]:,}' if lines else 'a million'
        table.limit(f'GetVirtualDiskChanges of 1 TiB, {count} ranges: {of}{scale}', 'diff',
                    [line['median_ms'] for line in lines], 'ms', 1, f'< {bar} ms' if bar else '', bar)
        scale = ''


def export_rows(table, results):
    ours, peer = (results.values('bytes_per_s', 'lifecycle', what='export', side=side)
                  for side in ('export', 'read'))
    table.compare('incremental export to a pipe, random 4 KiB changes, cold; reading the changed blocks',
                  'export', ours, peer, 'MB/s', 1e6, '>= 0.8 x', at_least(0.8))
    ours, peer = (results.values('bytes_per_s', 'lifecycle', what='export-c', side=side)
                  for side in ('vmimg', 'qemu-img'))
    table.compare('the same of /usr, zlib; `qemu-img convert -c`', 'export', ours, peer, 'MB/s', 1e6,
                  '>= 2 x', at_least(2))


if __name__ == '__main__':
    report(delete_rows, fold_rows, diff_rows, export_rows)
