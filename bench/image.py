#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Image files against qemu-img, by turns: convert to qcow2, plain and compressed, and compare.

    image.py VMIMG DIRECTORY MIB ROUNDS

The image is MIB of /usr/lib as tar packs it: what a system disk holds. It is in the page cache, for
both, but for compare, which is measured with cold files, too; the results are written to DIRECTORY's file system and durable for both (-t none, whose last act
is a flush; with -c, which is bound by the processors, qemu-img's own way, which is not durable). A line
of JSON for each figure: bytes of the image a second. Every result is compared with its source.
"""
import json, os, subprocess, sys, time


def quiet(command):
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def make_image(path, mib):
    """Sorted, so that the same system gives the same image."""
    tar = subprocess.Popen(['tar', '--sort=name', '--mtime=@0', '-cf', '-', '/usr/lib'],
                           stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    left = mib << 20
    with open(path, 'wb') as image:
        while left:
            data = tar.stdout.read(min(left, 1 << 20))
            if not data:
                sys.exit(f'/usr/lib has less than {mib} MiB')
            image.write(data)
            left -= len(data)
    tar.stdout.close()
    tar.wait()


def timed(command, out=None):
    """Seconds, with nothing of the past to be written meanwhile."""
    if out and os.path.exists(out):
        os.unlink(out)
    os.sync()
    start = time.monotonic()
    quiet(command)
    return time.monotonic() - start


def evict(*paths):
    """From the page cache."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def main(vmimg, directory, mib, rounds):
    raw, ours, theirs = (os.path.join(directory, name) for name in ('raw', 'a.qcow2', 'b.qcow2'))

    def say(what, side, seconds):
        print(json.dumps({'row': 'image', 'what': what, 'side': side,
                          'bytes_per_s': (mib << 20) / seconds}), flush=True)

    make_image(raw, mib)
    for _ in range(rounds):
        say('convert', 'vmimg', timed([vmimg, 'convert', '-O', 'qcow2', raw, ours], ours))
        say('convert', 'peer',
            timed(['qemu-img', 'convert', '-t', 'none', '-O', 'qcow2', raw, theirs], theirs))
        for what, cold in (('compare', True), ('compare_cached', False)):
            for side, command in (('vmimg', [vmimg]), ('peer', ['qemu-img'])):
                os.sync()
                if cold:
                    evict(raw, ours)
                say(what, side, timed(command + ['compare', '-f', 'raw', '-F', 'qcow2', raw, ours]))
    for _ in range(rounds):
        say('compress', 'vmimg', timed([vmimg, 'convert', '-c', '-O', 'qcow2', raw, ours], ours))
        say('compress', 'peer',
            timed(['qemu-img', 'convert', '-c', '-O', 'qcow2', raw, theirs], theirs))
        print(json.dumps({'row': 'image_size', 'vmimg': os.path.getsize(ours),
                          'peer': os.path.getsize(theirs)}), flush=True)
    quiet(['qemu-img', 'check', '-q', ours])
    quiet(['qemu-img', 'compare', '-q', raw, ours])
    for path in (raw, ours, theirs):
        os.unlink(path)


if __name__ == '__main__':
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
