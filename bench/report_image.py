#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The table of image files from bench/run's results.jsonl: bench/image.py's lines. Habits as in
report.py.

    report_image.py RESULTS.jsonl
"""
from report import at_least, report


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


if __name__ == '__main__':
    report(rows)
