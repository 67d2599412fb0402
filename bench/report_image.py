#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The table of image files from bench/run's results.jsonl: bench/image.py's lines. Habits as in
report.py.

    report_image.py RESULTS.jsonl
"""
import statistics, sys

from report import Results, Table, at_least


def rows(table, results):
    for what, name, bar, least in (
            ('convert', 'raw to qcow2, durable; `qemu-img convert -t none`', '>= 1.0 x', 1.0),
            ('compress', 'raw to compressed qcow2; `qemu-img convert -c`', '>= 2 x', 2.0),
            ('compare', 'raw and qcow2 compared, cold; `qemu-img compare`', '>= 1.0 x', 1.0),
            ('compare_cached', 'the same in the page cache', '', 0)):
        ours, peer = (results.values('bytes_per_s', 'image', what=what, side=side)
                      for side in ('vmimg', 'peer'))
        table.compare(name, 'image', ours, peer, 'MB/s', 1e6, bar, at_least(least))
    ours, peer = (results.values(side, 'image_size') for side in ('vmimg', 'peer'))
    table.compare('size of the compressed qcow2; the same', 'image', ours, peer, 'MiB', 1 << 20, '',
                  at_least(0))


def main():
    results = Results(sys.argv[1])
    scale = results.scale
    table = Table(results)
    rows(table, results)
    print(f'\n{scale["cpus"]} CPUs, Linux {scale["kernel"]}, {scale["file_system"]}, '
          f'{scale["rounds"]} rounds: median (least - greatest).\n')
    if scale['quick']:
        print('**A quick run: it shows that everything runs; the figures mean nothing.**\n')
    table.print()
    verdicts = [row[-1] for row in table.rows if row[-1]]
    print(f'\n{verdicts.count("yes")} of {len(verdicts)} bars met.')


if __name__ == '__main__':
    if len(sys.argv) != 2:
        sys.exit('usage: report_image.py RESULTS.jsonl')
    main()
