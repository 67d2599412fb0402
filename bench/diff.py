#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What changed of a disk of 1 TiB: bench/diff's lines, and for scale qemu-img's map and compare of an image
with a 64th of the changes, since each of them takes a cluster of 64 KiB there.

    diff.py PROGRAM DIR BLOCKS
"""
import json, os, random, shutil, subprocess, sys, time

BLOCK = 4096
TIB = 1 << 40


def timed(*command):
    start = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return (time.monotonic() - start) * 1e3, done.stdout


def peer(where, count):
    raw, qcow2 = os.path.join(where, 'raw'), os.path.join(where, 'qcow2')
    rng = random.Random(1)
    with open(raw, 'wb') as file:
        file.truncate(TIB)
        for block in sorted(rng.sample(range(TIB // BLOCK), count)):
            os.pwrite(file.fileno(), b'\x5a' * BLOCK, block * BLOCK)
    timed('qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2', raw, qcow2)
    map_ms, text = timed('qemu-img', 'map', '--output=json', qcow2)
    ranges = sum(entry['data'] for entry in json.loads(text))
    compare_ms, _ = timed('qemu-img', 'compare', '-f', 'raw', '-F', 'qcow2', raw, qcow2)
    print(json.dumps({'row': 'diff_peer', 'ranges': ranges, 'map_ms': map_ms,
                      'compare_ms': compare_ms}), flush=True)


def main():
    program, where, blocks = sys.argv[1], sys.argv[2], int(sys.argv[3])
    os.mkdir(where)
    try:
        subprocess.run([program, os.path.join(where, 'store'), str(blocks)], check=True)
        shutil.rmtree(os.path.join(where, 'store'))
        if shutil.which('qemu-img'):
            peer(where, max(blocks // 64, 1))
    finally:
        shutil.rmtree(where)


if __name__ == '__main__':
    if len(sys.argv) != 4:
        sys.exit('usage: diff.py PROGRAM DIR BLOCKS')
    main()
