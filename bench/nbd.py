#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""`vmimg serve` against other NBD servers, over Unix sockets and with one client: `vmimg bench` for
rates (fio where that is said), bench/stall for the longest write. The sides of a row take turns in every
round. Prints a JSON line for each figure.

    nbd.py PART DIR [--mib=N] [--rounds=N] [--seconds=N] [--disks=N,N...] [--snapshots=N]
                    [--peer-snapshots=N] [--exports=N] [--connections=N]

  head        4 KiB random on a full head; qemu-storage-daemon with raw and qcow2, io_uring, direct; a
              file through io_uring without any server, for scale
  cost        4 KiB random in the page cache; nbdkit file
  first       first writes after a snapshot; qemu-storage-daemon with fresh qcow2 overlays
  sequential  one connection, 64 KiB; the file through io_uring
  stall       the longest write of four clients while a snapshot of all disks is taken; QEMU's transaction
  scale       many exports and connections: start, memory at rest
"""
import argparse, json, os, shutil, subprocess, sys, time

from daemons import Daemon, Store, VMIMG, hold, many_files, qsd, qsd_file, run
from peer_qsd import Qmp

BLOCK = 4096
BUILD = os.environ.get('VMIMG_BUILD', 'build')


def show(**line):
    print(json.dumps({'row': 'nbd', **line}), flush=True)


def bench(target, **options):
    return json.loads(run(VMIMG, 'bench', target, '--output=json',
                          *(f'--{key.replace("_", "-")}={value}' for key, value in options.items())))


def measure(what, side, number, server, target, **options):
    """Round 0 warms up."""
    before = server.cpu_us() if server else 0
    got = bench(target, **options)
    if got['errors']:
        raise SystemExit(f'{target}: {got["errors"]} errors')
    spent = server.cpu_us() - before if server else 0
    if number:
        show(what=what, side=side, round=number, iops=got['iops'], bandwidth=got['bandwidth'],
             p50_ns=got['latency_ns']['p50'], p99_ns=got['latency_ns']['p99'], ios=got['ios'],
             client_cpu_us=got['cpu_us_per_io'], server_cpu_us=round(spent / max(got['ios'], 1), 3))


def fio(what, side, number, target, mib, **options):
    """The same row by fio's nbd engine, which costs the processors more."""
    text = run('fio', '--name=x', '--ioengine=nbd', f'--uri={target}', '--bs=4k', f'--size={mib}m',
               '--time_based', '--output-format=json', *(f'--{key}={value}' for key, value in options.items()))
    job = json.loads(text[text.index('{'):])['jobs'][0]
    got = job['read' if 'read' in options['rw'] else 'write']
    show(what=what, side=side, round=number, iops=got['iops'],
         p50_ns=got['clat_ns']['percentile']['50.000000'])


def raw_file(path, mib):
    run('fallocate', '-l', f'{mib}M', path)
    bench(f'raw:{path}', rw='write', bs='1M', iodepth=8)


def qcow2_file(directory, name, mib, *options):
    """A qcow2 image with every block written."""
    path = f'{directory}/{name}.qcow2'
    run('qemu-img', 'create', '-q', '-f', 'qcow2', *options, path, f'{mib}M')
    server = qsd(directory, name, [path], 'qcow2')
    bench(server.uri('x'), rw='write', bs='1M', iodepth=8)
    server.stop()
    return path


def whole(uri):
    """Cold data reads slowly at first: all sides are read whole before they compete."""
    bench(uri, rw='read', bs='1M', iodepth=8)


def evict(directory):
    """Both sides' pages then come into the cache the same way: large folios cost ext4 dear at each write."""
    os.sync()
    for root, _, names in os.walk(directory):
        for name in names:
            path = f'{root}/{name}'
            if os.path.isfile(path):
                with open(path, 'rb') as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def take_turns(rows, sides, o):
    for what, options in rows:
        for number in range(o.rounds + 1):
            for side, server, target in sides:
                measure(what, side, number, server, target, runtime=o.seconds if number else 1, **options)


def part_head(o):
    store = Store(o.dir)
    store.create(1, o.mib << 20)
    store.control.snapshot('c', 's0')
    uri = store.uri('v0/d0')
    bench(uri, rw='randwrite')
    raw_file(f'{o.dir}/raw', o.mib)
    raw_file(f'{o.dir}/scale', o.mib)
    raw = qsd(o.dir, 'raw', [f'{o.dir}/raw'], 'raw')
    qcow2 = qsd(o.dir, 'qcow2', [qcow2_file(o.dir, 'full', o.mib)], 'qcow2')
    sides = (('vmimg', store, uri), ('raw', raw, raw.uri('x')), ('qcow2', qcow2, qcow2.uri('x')))
    for _, _, target in sides:
        whole(target)
    take_turns([(f'{rw}_qd{depth}', {'rw': rw, 'iodepth': depth})
                for depth in (1, 32) for rw in ('randread', 'randwrite')],
               (*sides, ('none', None, f'raw:{o.dir}/scale')), o)
    for depth in (1, 32):
        for rw in ('randread', 'randwrite'):
            for number in range(1, o.rounds + 1):
                for side, _, target in sides:
                    fio(f'{rw}_qd{depth}_fio', side, number, target, o.mib, rw=rw, iodepth=depth,
                        runtime=o.seconds)
    for _, server, _ in sides:
        server.stop()


def part_cost(o):
    """Both sides' file is a plain one, written, and in the page cache."""
    store = Store(o.dir, '--buffered')
    store.create(1, o.mib << 20)
    uri = store.uri('v0/d0')
    raw_file(f'{o.dir}/raw', o.mib)
    kit = Daemon(o.dir, 'nbdkit', ['nbdkit', '-f', '-U', '@SOCKET@', 'file', f'{o.dir}/raw'])
    sides = (('vmimg', store, uri), ('nbdkit', kit, kit.uri('')))
    bench(uri, rw='write', bs='1M', iodepth=8)
    evict(o.dir)
    for _, _, target in sides:
        whole(target)
    take_turns([(f'cached_{rw}_qd{depth}', {'rw': rw, 'iodepth': depth})
                for depth in (32, 1) for rw in ('randread', 'randwrite')], sides, o)
    for _, server, _ in sides:
        server.stop()


def part_first(o):
    store = Store(o.dir)
    store.create(1, o.mib << 20)
    store.control.snapshot('c', 's0')  # from here on overlays: a raw base is never sealed
    uri = store.uri('v0/d0')
    bench(uri, rw='write', bs='1M', iodepth=8)
    kinds = {'qcow2': [], 'extended': ['-o', 'extended_l2=on,cluster_size=128k']}
    bases = {kind: qcow2_file(o.dir, kind, o.mib, *options) for kind, options in kinds.items()}
    load = {'rw': 'randwrite', 'iodepth': 32, 'number_ios': (o.mib << 20) // BLOCK,
            'runtime': o.seconds}
    for number in range(1, o.rounds + 1):
        store.control.snapshot('c', f's{number}')
        store.control.await_seal(f'c@s{number}')
        measure('first_write_qd32', 'vmimg', number, store, uri, **load)
        for kind, options in kinds.items():
            over = f'{o.dir}/over.qcow2'
            run('qemu-img', 'create', '-q', '-f', 'qcow2', *options, '-b', bases[kind], '-F', 'qcow2', over)
            server = qsd(o.dir, 'over', [bases[kind], over], 'qcow2')
            measure('first_write_qd32', kind, number, server, server.uri('x'), **load)
            server.stop()
            os.unlink(over)
            os.sync()
            time.sleep(1)
    store.stop()


def part_sequential(o):
    """A disk without snapshots, and a head that was written in order."""
    store = Store(o.dir)
    store.create(2, o.mib << 20)
    disk, head = store.uri('v0/d0'), store.uri('v0/d1')
    bench(disk, rw='write', bs='1M', iodepth=8)
    store.control.snapshot('c', 's0')
    bench(head, rw='write', bs='1M', iodepth=8)
    raw_file(f'{o.dir}/raw', o.mib)
    sides = (('vmimg', store, disk), ('head', store, head), ('raw', None, f'raw:{o.dir}/raw'))
    for _, _, target in sides:
        whole(target)
    take_turns([('read_64k_qd8', {'rw': 'read', 'bs': '64k', 'iodepth': 8})], sides, o)
    store.stop()


class Writers:
    """Four clients that write all the time, one request each."""

    def __init__(self, uris):
        self.process = subprocess.Popen([f'{BUILD}/bench/stall', *uris], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)
        if self.process.stdout.readline() != 'ready\n':
            raise SystemExit('bench/stall does not start')

    def longest(self, windows):
        text, _ = self.process.communicate(''.join(f'{start} {end}\n' for start, end in windows))
        if self.process.returncode:
            raise SystemExit('bench/stall failed')
        return json.loads(text)


def window(call):
    start = time.monotonic_ns()
    call()
    return start, time.monotonic_ns()


def snapshots(side, disks, count, writers, prepare, take):
    """@take between two instants, and as long a time without it before."""
    windows, last = [], 0.1
    for i in range(count):
        prepare(i)
        time.sleep(0.5)
        windows.append(window(lambda: time.sleep(last)))
        windows.append(window(lambda: take(i)))
        last = (windows[-1][1] - windows[-1][0]) / 1e9
    got = writers.longest(windows)
    took = [end - start for start, end in windows]
    show(what='stall', side=side, disks=disks, snapshots=count, p50_ns=got['p50_ns'],
         without_ns=got['longest_ns'][0::2], with_ns=got['longest_ns'][1::2], took_ns=took[1::2])


def stall_ours(o, disks):
    store = Store(o.dir)
    store.create(disks, o.mib << 20)
    names = [store.name(i) for i in range(disks)]
    for name in names[:4]:
        bench(store.uri(name), rw='write', bs='1M', iodepth=8)
    guests = [hold(store.socket, name) for name in names]
    store.control.snapshot('c', 'first')
    writers = Writers([store.uri(name) for name in names[:4]])
    time.sleep(1)
    snapshots('vmimg', disks, o.snapshots, writers, lambda i: None,
              lambda i: store.control.snapshot('c', f's{i}'))
    for guest in guests:
        guest.close()
    store.stop()
    shutil.rmtree(store.store)


def stall_qsd(o, disks):
    """The transaction alone is timed: its overlays are made before."""
    directory = f'{o.dir}/qsd'
    os.makedirs(directory)
    monitor = f'{directory}/monitor'
    run('qemu-img', 'create', '-q', '-f', 'qcow2', f'{directory}/empty', f'{o.mib}M')
    server = Daemon(o.dir, 'qsd', [
        'qemu-storage-daemon', '--chardev', f'socket,path={monitor},server=on,wait=off,id=c', '--monitor',
        'chardev=c', '--nbd-server', 'addr.type=unix,addr.path=@SOCKET@,max-connections=2000'],
        lambda: os.path.exists(monitor) and os.path.exists(f'{o.dir}/qsd.sock'))
    qmp = Qmp(monitor)
    for i in range(disks):
        path = f'{directory}/d{i}'
        shutil.copyfile(f'{directory}/empty', path)
        qmp.call('blockdev-add', **{'driver': 'qcow2', 'node-name': f'top{i}.0', 'file': qsd_file(path),
                                    'cache': {'direct': True}})
        qmp.call('block-export-add', **{'type': 'nbd', 'id': f'e{i}', 'node-name': f'top{i}.0',
                                        'name': f'd{i}', 'writable': True})
    for i in range(min(disks, 4)):
        bench(server.uri(f'd{i}'), rw='write', bs='1M', iodepth=8)
    guests = [hold(server.socket, f'd{i}') for i in range(disks)]

    def prepare(n):
        for i in range(disks):
            path = f'{directory}/o{n}.{i}'
            shutil.copyfile(f'{directory}/empty', path)
            qmp.call('blockdev-add', **{'driver': 'qcow2', 'node-name': f'top{i}.{n + 1}',
                                        'file': qsd_file(path), 'cache': {'direct': True},
                                        'backing': None})

    def take(n):
        qmp.call('transaction', actions=[
            {'type': 'blockdev-snapshot', 'data': {'node': f'top{i}.{n}', 'overlay': f'top{i}.{n + 1}'}}
            for i in range(disks)])

    writers = Writers([server.uri(f'd{i}') for i in range(min(disks, 4))])
    time.sleep(1)
    snapshots('qsd', disks, o.peer_snapshots, writers, prepare, take)
    for guest in guests:
        guest.close()
    server.stop()
    shutil.rmtree(directory)


def part_stall(o):
    for disks in o.disks:
        stall_ours(o, disks)
        stall_qsd(o, disks)


def part_scale(o):
    store = Store(o.dir)
    store.create(o.exports, o.mib << 20)
    store.stop()
    for number in range(1, o.rounds + 1):
        store = Store(o.dir)
        empty = store.resident()
        guests = [hold(store.socket, store.name(i * o.exports // o.connections))
                  for i in range(o.connections)]
        time.sleep(3)
        show(what='scale', side='vmimg', round=number, exports=o.exports, connections=o.connections,
             start_s=round(store.start_s, 4), resident=store.resident(), resident_empty=empty)
        for guest in guests:
            guest.close()
        store.stop()


def numbers(text):
    return [int(word) for word in text.split(',')]


def main():
    parts = {name[5:]: part for name, part in globals().items() if name.startswith('part_')}
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('part', choices=parts)
    parser.add_argument('dir')
    for name, default in (('mib', 1024), ('rounds', 5), ('seconds', 2), ('snapshots', 20),
                          ('peer-snapshots', 5), ('exports', 1000), ('connections', 200)):
        parser.add_argument(f'--{name}', type=int, default=default)
    parser.add_argument('--disks', type=numbers, default=[1, 8, 64, 256])
    o = parser.parse_args()
    o.dir = os.path.abspath(o.dir)
    os.makedirs(o.dir)
    many_files()
    try:
        parts[o.part](o)
    finally:
        shutil.rmtree(o.dir)


if __name__ == '__main__':
    main()
