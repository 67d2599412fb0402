#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The same load inside a VM on three disks of the same size, by turns: one over vhost-user-blk and one over
NBD, both served by `vmimg serve`, and QEMU's own qcow2. The load is `vmimg bench` itself, on the guest's
block devices. All three were written whole, in order. Boots the kernel of examples/demo-vm with its
initramfs, to which the command and an init are added. Prints a JSON line for each figure.

    guest.py DIR [--mib=N] [--rounds=N] [--seconds=N]
"""
import argparse, json, os, shutil, subprocess, sys

from daemons import Store, VMIMG, run
from nbd import BUILD, bench, qcow2_file, whole

SIDES = ('vhost-user-blk', 'nbd', 'qcow2')  # in the order of their PCI slots: vda, vdb, vdc
ROWS = [(rw, depth) for depth in (1, 32) for rw in ('randread', 'randwrite')]

INIT = '''#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs devtmpfs /dev
while read -r module; do $b insmod /modules/$module; done </modules/order
$b mkdir -p /dev/shm /tmp
export LD_LIBRARY_PATH=/lib64
for disk in vda vdb vdc; do
	echo "SIZE $disk $($b cat /sys/block/$disk/size)"
done
'''


def make_initrd(path, o):
    """The demo's, with more behind it: what comes later in the file replaces what came before."""
    images = f'{BUILD}/guest'
    run('bash', 'examples/demo-vm/image.sh', images, f'{BUILD}/examples/demo-vm/guest')
    tree = f'{path}.tree'
    os.makedirs(f'{tree}/bin')
    os.makedirs(f'{tree}/lib64')
    run('strip', '-o', f'{tree}/bin/vmimg', VMIMG)
    for line in run('ldd', VMIMG).splitlines():
        for word in line.split():
            if word.startswith('/'):
                shutil.copy(os.path.realpath(word), f'{tree}/lib64/{os.path.basename(word)}')
    with open(f'{tree}/init', 'w') as init:
        init.write(INIT)
        for rw, depth in ROWS:
            for number in range(o.rounds + 1):
                for side, disk in zip(SIDES, ('vda', 'vdb', 'vdc')):
                    init.write(f'echo "ROW {rw}_qd{depth} {side} {number}"\n'
                               f'/bin/vmimg bench raw:/dev/{disk} --rw={rw} --iodepth={depth} '
                               f'--runtime={o.seconds if number else 1} --output=json | $b tr -d "\\n"\n'
                               'echo\n')
        init.write('echo END\n$b poweroff -f\n')
    os.chmod(f'{tree}/init', 0o755)
    shutil.copyfile(f'{images}/initrd', path)
    run('sh', '-c', f'cd "{tree}" && find . | sort | cpio --quiet -o -H newc | gzip -1 >>"{path}"')
    return f'{images}/vmlinuz'


def accelerator():
    """KVM where it works, which only a kernel that runs can tell: this one ends for want of a disk."""
    try:
        with open(f'{BUILD}/guest/accel') as known:
            return known.read().split()[1]
    except OSError:
        pass
    if not os.access('/dev/kvm', os.W_OK):
        return 'tcg'
    try:
        done = subprocess.run(['qemu-system-x86_64', '-machine', 'q35,accel=kvm', '-cpu', 'max', '-m', '256',
                               '-nodefaults', '-no-reboot', '-display', 'none', '-kernel',
                               f'{BUILD}/guest/vmlinuz', '-append', 'quiet panic=-1'],
                              stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=False)
    except subprocess.TimeoutExpired:
        return 'tcg'
    return 'tcg' if done.returncode else 'kvm:tcg'


def boot(kernel, initrd, store, vhost, image, seconds):
    node = {'driver': 'qcow2', 'node-name': 'own', 'cache': {'direct': True},
            'file': {'driver': 'file', 'filename': image, 'aio': 'io_uring', 'cache': {'direct': True}}}
    command = [
        'qemu-system-x86_64', '-machine', f'q35,accel={accelerator()},memory-backend=ram', '-object',
        'memory-backend-memfd,id=ram,size=512M,share=on', '-m', '512', '-cpu', 'max', '-smp', '1',
        '-nodefaults', '-no-user-config', '-no-reboot', '-display', 'none', '-serial', 'stdio',
        '-kernel', kernel, '-initrd', initrd, '-append', 'console=ttyS0 quiet panic=-1',
        '-object', 'iothread,id=io',
        '-chardev', f'socket,id=vhost,path={vhost}/v0.d0.sock',
        '-device', 'vhost-user-blk-pci,chardev=vhost,num-queues=1,addr=0x8',
        '-blockdev', 'driver=nbd,node-name=nbd,server.type=unix,export=v0/d1,'
        f'server.path={store.socket}',
        '-device', 'virtio-blk-pci,drive=nbd,iothread=io,num-queues=1,addr=0x9',
        '-blockdev', json.dumps(node),
        '-device', 'virtio-blk-pci,drive=own,iothread=io,num-queues=1,addr=0xa']
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, timeout=seconds, check=False)
    except subprocess.TimeoutExpired as late:
        raise SystemExit(f'the VM does not end: {(late.stdout or b"").decode(errors="replace")[-2000:]}')
    text = done.stdout.decode(errors='replace').replace('\r', '')
    if 'END\n' not in text:
        raise SystemExit(f'the VM ended with {done.returncode}: {text[-2000:]}')
    return text.splitlines()


def show(lines, sectors):
    row = None
    for line in lines:
        words = line.split()
        if line.startswith('SIZE ') and int(words[2]) != sectors:
            raise SystemExit(f'{line}: not {sectors} sectors')
        if line.startswith('ROW '):
            row = words[1:]
        elif line.startswith('{') and row:
            got = json.loads(line)
            if int(row[2]):
                print(json.dumps({'row': 'guest', 'what': row[0], 'side': row[1], 'round': int(row[2]),
                                  'iops': got['iops'], 'p50_ns': got['latency_ns']['p50'],
                                  'p99_ns': got['latency_ns']['p99'], 'errors': got['errors'],
                                  'accelerator': accelerator()}), flush=True)
            row = None


def measure(o):
    vhost = f'{o.dir}/vhost'
    os.makedirs(vhost)
    kernel = make_initrd(f'{o.dir}/initrd', o)
    image = qcow2_file(o.dir, 'own', o.mib)
    store = Store(o.dir, f'--vhost-user={vhost}')
    store.create(2, o.mib << 20)
    store.control.snapshot('c', 's0')
    for i in range(2):
        bench(store.uri(f'v0/d{i}'), rw='write', bs='1M', iodepth=8)
        whole(store.uri(f'v0/d{i}'))
    limit = 300 + len(ROWS) * len(SIDES) * (o.rounds + 1) * (o.seconds + 10)
    show(boot(kernel, f'{o.dir}/initrd', store, vhost, image, limit), o.mib << 11)
    store.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('dir')
    for name, default in (('mib', 512), ('rounds', 5), ('seconds', 3)):
        parser.add_argument(f'--{name}', type=int, default=default)
    o = parser.parse_args()
    o.dir = os.path.abspath(o.dir)
    os.makedirs(o.dir)
    try:
        measure(o)
    finally:
        shutil.rmtree(o.dir)


if __name__ == '__main__':
    main()
