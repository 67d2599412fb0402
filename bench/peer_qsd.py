#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""One group snapshot by qemu-storage-daemon, everything inside the daemon: for every disk
blockdev-create and blockdev-add of an overlay, then one transaction of blockdev-snapshot over all of
them. The disks are qcow2 files of 1 GiB, opened with direct I/O and io_uring, and idle. They are made
by the first call in DIR; each call makes the overlays anew. Prints a JSON line.

    peer_qsd.py DIR DISKS
"""
import json, os, resource, shutil, socket, subprocess, sys, time

SIZE = 1 << 30


class Qmp:
    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.lines = self.socket.makefile('rb')
        self.events = []
        self.receive()  # the greeting
        self.call('qmp_capabilities')

    def receive(self):
        line = self.lines.readline()
        if not line:
            raise RuntimeError('qemu-storage-daemon closed its monitor')
        return json.loads(line)

    def call(self, command, **arguments):
        message = {'execute': command, 'arguments': arguments}
        self.socket.sendall(json.dumps(message).encode() + b'\n')
        while True:
            answer = self.receive()
            if 'error' in answer:
                raise RuntimeError(f'{command}: {answer["error"]["desc"]}')
            if 'return' in answer:
                return answer['return']
            self.events.append(answer)

    def create(self, job, **options):
        """blockdev-create, to the end of its job."""
        self.call('blockdev-create', **{'job-id': job, 'options': options})
        while not any(e['event'] == 'JOB_STATUS_CHANGE' and e['data']['id'] == job and
                      e['data']['status'] == 'concluded' for e in self.events):
            self.events.append(self.receive())
        self.events.clear()
        failed = [j['error'] for j in self.call('query-jobs') if j['id'] == job and 'error' in j]
        if failed:
            raise RuntimeError(f'{job}: {failed[0]}')
        self.call('job-dismiss', id=job)


def file_node(path):
    return {'driver': 'file', 'filename': path, 'aio': 'io_uring', 'cache': {'direct': True}}


def make_disks(directory, count):
    os.makedirs(directory, exist_ok=True)
    first = f'{directory}/d0.qcow2'
    if not os.path.exists(first):
        subprocess.run(['qemu-img', 'create', '-q', '-f', 'qcow2', first, str(SIZE)], check=True)
    for i in range(1, count):
        if not os.path.exists(f'{directory}/d{i}.qcow2'):
            shutil.copyfile(first, f'{directory}/d{i}.qcow2')
    for name in os.listdir(directory):
        if name.startswith('o'):
            os.unlink(f'{directory}/{name}')
    os.sync()


def start_daemon(monitor):
    if os.path.exists(monitor):
        os.unlink(monitor)
    daemon = subprocess.Popen(
        ['qemu-storage-daemon', '--chardev', f'socket,path={monitor},server=on,wait=off,id=c',
         '--monitor', 'chardev=c'], stdin=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not os.path.exists(monitor):
        if daemon.poll() is not None or time.monotonic() > deadline:
            daemon.kill()
            raise RuntimeError('qemu-storage-daemon does not start')
        time.sleep(0.01)
    time.sleep(0.1)
    return daemon


def snapshot(qmp, directory, count):
    for i in range(count):
        qmp.call('blockdev-add', **{'driver': 'qcow2', 'node-name': f'd{i}',
                                    'file': file_node(f'{directory}/d{i}.qcow2'),
                                    'cache': {'direct': True}})
    start = time.monotonic_ns()
    for i in range(count):
        path = f'{directory}/o{i}.qcow2'
        qmp.create(f'file{i}', driver='file', filename=path, size=0)
        qmp.call('blockdev-add', **{**file_node(path), 'node-name': f'f{i}'})
        qmp.create(f'qcow{i}', **{'driver': 'qcow2', 'file': f'f{i}', 'size': SIZE,
                                  'backing-file': f'{directory}/d{i}.qcow2',
                                  'backing-fmt': 'qcow2'})
        qmp.call('blockdev-add', **{'driver': 'qcow2', 'node-name': f'o{i}', 'file': f'f{i}',
                                    'backing': None})
    created = time.monotonic_ns()
    qmp.call('transaction', actions=[
        {'type': 'blockdev-snapshot', 'data': {'node': f'd{i}', 'overlay': f'o{i}'}}
        for i in range(count)])
    end = time.monotonic_ns()
    return {'row': 'peer', 'disks': count, 'create_add_ns': created - start,
            'transaction_ns': end - created, 'total_ns': end - start}


def main():
    directory, count = os.path.abspath(sys.argv[1]), int(sys.argv[2])
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    make_disks(directory, count)
    os.chdir(directory)
    daemon = start_daemon('monitor')  # relative: the path of a socket is short
    try:
        print(json.dumps(snapshot(Qmp('monitor'), directory, count)))
    finally:
        daemon.terminate()
        daemon.wait()


if __name__ == '__main__':
    if len(sys.argv) != 3:
        sys.exit('usage: peer_qsd.py DIR DISKS')
    main()
