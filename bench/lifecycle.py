#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What becomes of snapshots: deleting them, and the folds behind it. Prints a JSON line for each figure.

    lifecycle.py PART DIR [--mib=N] [--rounds=N] [--seconds=N] [--disks=N] [--disk-mib=N] [--big-mib=N]

  delete  a snapshot of many disks with --disk-mib of changes each, and of one disk with --big-mib, under
          load: how long the call takes, and what four writers at queue depth 1 feel of it and of the folds
          at their default limit. Each window has one as long without beside it: before the call, and with
          the fold held still.
  fold    --mib of changes joined on an idle store, as fast as it goes, against `cp` and a sync of as many
          bytes, cold; and a snapshot deleted and its space given back, against `qemu-img commit` of the
          same changes.
  export  an increment of --mib, written at random in blocks of 4 KiB, to a pipe, against reading the same
          blocks, cold; and an increment of --mib of /usr compressed, against `qemu-img convert -c`.
"""
import argparse, json, os, shutil, time

from daemons import Store, VMIMG, run, vmimg
from nbd import Writers, bench, evict

FOLD_RATE = 64 << 20  # the default limit, bytes a second
STILL = 1             # a limit that holds a fold still


def show(**line):
    print(json.dumps({'row': 'lifecycle', **line}), flush=True)


def window(call):
    start = time.monotonic_ns()
    call()
    return start, time.monotonic_ns()


def running_fold(control):
    return any(job['job_type'] == 50 and job['job_state'] == 4 for job in control.call('List', Kind='job'))


def await_fold(control, seconds=30):
    deadline = time.monotonic() + seconds
    while not running_fold(control):
        if time.monotonic() > deadline:
            raise SystemExit('no fold began')
        time.sleep(0.01)


def settle(control):
    """As fast as it goes."""
    control.call('SetFoldRate', BytesPerSecond=0)
    job = control.call('Settle')['Job']
    while control.call('WaitJob', Job=job, Timeout=1000)['job_state'] == 4:
        pass


# --- delete ---

def change_all(store, disks, mib):
    for i in range(disks):
        bench(store.uri(store.name(i)), rw='write', bs='1M', iodepth=8, number_ios=mib)


def delete_once(store, number, seconds):
    """The windows of one deletion: without and with the call, then without and with a fold."""
    control = store.control
    control.call('SetFoldRate', BytesPerSecond=FOLD_RATE)
    time.sleep(0.5)
    last = 0.1
    windows = [window(lambda: time.sleep(last))]
    windows.append(window(lambda: control.call('DestroySnapshot', AffectedSnapshotCollection=f'c@s{number}')))
    await_fold(control)
    for _ in range(2):
        control.call('SetFoldRate', BytesPerSecond=STILL)
        time.sleep(0.2)
        windows.append(window(lambda: time.sleep(seconds)))
        control.call('SetFoldRate', BytesPerSecond=FOLD_RATE)
        windows.append(window(lambda: time.sleep(seconds)))
    return windows


def delete_rows(o, what, disks, mib):
    """Every round has a snapshot with that many changes on every disk above it and below."""
    store = Store(o.dir)
    store.create(disks, mib << 20)
    control = store.control
    names = [store.name(i) for i in range(min(disks, 4))]
    control.snapshot('c', 's0')
    change_all(store, disks, mib)
    control.snapshot('c', 's1')
    for number in range(1, o.rounds + 1):
        change_all(store, disks, mib)
        control.snapshot('c', f's{number + 1}')
        control.await_seal(f'c@s{number + 1}')
        settle(control)
        writers = Writers([store.uri(name) for name in names])
        time.sleep(1)
        windows = delete_once(store, number, o.seconds)
        got = writers.longest(windows)
        show(what=what, round=number, disks=disks, mib=mib, took_ns=windows[1][1] - windows[1][0],
             longest_without_ns=got['longest_ns'][0], longest_call_ns=got['longest_ns'][1],
             longest_still_ns=got['longest_ns'][2::2], longest_fold_ns=got['longest_ns'][3::2],
             p99_still_ns=got['window_p99_ns'][2::2], p99_fold_ns=got['window_p99_ns'][3::2])
        settle(control)
    store.stop()
    shutil.rmtree(store.store)


def part_delete(o):
    delete_rows(o, 'many', o.disks, o.disk_mib)
    delete_rows(o, 'big', 1, o.big_mib)


# --- fold ---

def make_store(o, name, mib):
    """The disk m/d with the snapshot c@base of an empty base."""
    store = f'{o.dir}/{name}'
    os.environ['VMIMG_STORE'] = store
    for command in (('init', store), ('vm', 'create', 'm'), ('disk', 'create', 'm/d', f'--size={mib}M'),
                    ('collection', 'create', 'c', 'm'), ('snapshot', 'create', 'c@base')):
        run(VMIMG, *command)
    return store


def noise(path, mib):
    with open(path, 'wb') as file:
        for _ in range(mib):
            file.write(os.urandom(1 << 20))


def write(path, offset_mib):
    run('sh', '-c', f'"{VMIMG}" disk write m/d {offset_mib}M <"{path}"')


def timed(call):
    os.sync()
    time.sleep(0.5)
    start = time.monotonic_ns()
    call()
    return time.monotonic_ns() - start


def fold_copy(o, number, part):
    """Two layers of half the bytes each become one; a file of as many is copied."""
    store = make_store(o, 'fold', o.mib)
    write(part, 0)
    run(VMIMG, 'snapshot', 'create', 'c@s1')
    write(part, o.mib // 2)
    run(VMIMG, 'snapshot', 'create', 'c@s2')
    run(VMIMG, 'settle')
    run(VMIMG, 'snapshot', 'delete', 'c@s1', '--no-wait')
    whole, copy = f'{o.dir}/whole', f'{o.dir}/copy'
    run('sh', '-c', f'cat "{part}" "{part}" >"{whole}"')
    evict(o.dir)
    ours = timed(lambda: run(VMIMG, 'settle', '--whole'))
    layers = vmimg('disk', 'show', 'm/d')['layers']
    if layers != 3:  # the base, what was folded, the head
        raise SystemExit(f'{layers} layers after the fold, expected 3')
    evict(o.dir)
    peer = timed(lambda: run('sh', '-c', f'cp --reflink=never "{whole}" "{copy}" && sync "{copy}"'))
    for side, ns in (('vmimg', ours), ('cp', peer)):
        show(what='fold', side=side, round=number, bytes_per_s=(o.mib << 20) * 1e9 / ns)
    shutil.rmtree(store)
    os.unlink(whole)
    os.unlink(copy)


def commit_ours(o, change):
    """The base's snapshot goes: the changes above it are all that has to find its place."""
    store = make_store(o, 'commit', o.mib)
    write(change, 0)
    run(VMIMG, 'snapshot', 'create', 'c@s1')
    run(VMIMG, 'settle')
    evict(o.dir)
    total = timed(lambda: run(VMIMG, 'snapshot', 'delete', 'c@base'))
    layers = vmimg('disk', 'show', 'm/d')['layers']
    if layers > 2:
        raise SystemExit(f'{layers} layers after the deletion, expected 2')
    shutil.rmtree(store)
    return total


def commit_peer(o, change):
    base, top = f'{o.dir}/base.raw', f'{o.dir}/top.qcow2'
    run('truncate', '-s', f'{o.mib}M', base)
    run('qemu-img', 'create', '-q', '-f', 'qcow2', '-b', base, '-F', 'raw', top)
    run('qemu-io', '-f', 'qcow2', '-c', f'write -s {change} 0 {o.mib}M', top)
    evict(o.dir)
    total = timed(lambda: run('sh', '-c', f'qemu-img commit -q "{top}" && sync "{base}"'))
    os.unlink(base)
    os.unlink(top)
    return total


def delete_alone(o, change):
    """The call on a served store, until it is durable."""
    store = make_store(o, 'alone', o.mib)
    write(change, 0)
    run(VMIMG, 'snapshot', 'create', 'c@s1')
    run(VMIMG, 'settle')
    os.rename(store, f'{o.dir}/alone.store')
    server = Store(o.dir, name='alone')
    server.control.call('SetFoldRate', BytesPerSecond=STILL)
    took = timed(lambda: server.control.call('DestroySnapshot', AffectedSnapshotCollection='c@base'))
    server.control.call('SetFoldRate', BytesPerSecond=0)
    server.stop()
    shutil.rmtree(f'{o.dir}/alone.store')
    return took


def part_fold(o):
    part, change = f'{o.dir}/part', f'{o.dir}/change'
    noise(part, o.mib // 2)
    noise(change, o.mib)
    for number in range(1, o.rounds + 1):
        fold_copy(o, number, part)
        for side, measure in (('delete', delete_alone), ('delete_fold', commit_ours),
                              ('commit', commit_peer)):
            show(what='commit', side=side, round=number, mib=o.mib, took_ns=measure(o, change))


# --- export ---

def drained(command):
    return timed(lambda: run('bash', '-o', 'pipefail', '-c', f'{command} | cat >/dev/null'))


def export_random(o, number):
    """Every block of the disk has changed, in no order."""
    store = make_store(o, 'export', o.mib)
    run(VMIMG, 'bench', 'm/d', '--rw=randwrite', '--bs=4k', '--iodepth=32', f'--number-ios={o.mib * 256}')
    run(VMIMG, 'snapshot', 'create', 'c@s1')
    run(VMIMG, 'settle')
    for side, command in (('read', 'disk read c@s1/m/d'), ('export', 'snapshot export c@s1 - --base=base')):
        evict(o.dir)
        show(what='export', side=side, round=number,
             bytes_per_s=(o.mib << 20) * 1e9 / drained(f'"{VMIMG}" {command}'))
    shutil.rmtree(store)


def export_compressed(o, number, text):
    store = make_store(o, 'export', o.mib)
    write(text, 0)
    run(VMIMG, 'snapshot', 'create', 'c@s1')
    run(VMIMG, 'settle')
    ours = drained(f'"{VMIMG}" snapshot export c@s1 - --base=base --compress')
    peer = timed(lambda: run('qemu-img', 'convert', '-q', '-c', '-f', 'raw', '-O', 'qcow2', text,
                             f'{o.dir}/peer.qcow2'))
    os.unlink(f'{o.dir}/peer.qcow2')
    for side, ns in (('vmimg', ours), ('qemu-img', peer)):
        show(what='export-c', side=side, round=number, bytes_per_s=(o.mib << 20) * 1e9 / ns)
    shutil.rmtree(store)


def part_export(o):
    text = f'{o.dir}/text'
    run('bash', '-c', f'tar cf - /usr 2>/dev/null | head -c {o.mib << 20} >"{text}"')
    run('truncate', '-s', f'{o.mib}M', text)
    for number in range(1, o.rounds + 1):
        export_random(o, number)
        export_compressed(o, number, text)


def main():
    parts = {name[5:]: part for name, part in globals().items() if name.startswith('part_')}
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('part', choices=parts)
    parser.add_argument('dir')
    for name, default in (('mib', 1024), ('rounds', 5), ('seconds', 2), ('disks', 64), ('disk-mib', 64),
                          ('big-mib', 4096)):
        parser.add_argument(f'--{name}', type=int, default=default)
    o = parser.parse_args()
    o.dir = os.path.abspath(o.dir)
    os.makedirs(o.dir)
    try:
        parts[o.part](o)
    finally:
        shutil.rmtree(o.dir)


if __name__ == '__main__':
    main()
