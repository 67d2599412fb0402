#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The NBD servers that bench/nbd.py compares, and the two small protocols it speaks itself: enough of NBD
to hold a connection open, and the control socket's lines. A server that does not start, or a command that
fails, ends the program with its reason."""
import json, os, resource, socket, struct, subprocess, time

VMIMG = os.environ.get('VMIMG', 'build/vmimg')


def run(*command):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f'{" ".join(command)}: {done.stderr.strip() or done.returncode}')
    return done.stdout


def vmimg(*arguments):
    return json.loads(run(VMIMG, *arguments, '--output=json') or 'null')


def many_files():
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))


class Daemon:
    """A server on a Unix socket; ready() tells when its clients can come."""

    def __init__(self, directory, name, command, ready=None):
        self.socket = f'{directory}/{name}.sock'
        self.log = f'{directory}/{name}.log'
        if os.path.exists(self.socket):
            os.unlink(self.socket)
        ready = ready or (lambda: os.path.exists(self.socket))
        with open(self.log, 'w') as log:
            start = time.monotonic()
            self.process = subprocess.Popen([part.replace('@SOCKET@', self.socket) for part in command],
                                            stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        while not ready():
            if self.process.poll() is not None or time.monotonic() - start > 60:
                self.process.kill()
                with open(self.log) as log:
                    raise SystemExit(f'{name} does not start: {log.read()}')
            time.sleep(0.001)
        self.start_s = time.monotonic() - start

    def uri(self, export):
        return f'nbd+unix:///{export}?socket={self.socket}'

    def cpu_us(self):
        with open(f'/proc/{self.process.pid}/stat') as stat:
            fields = stat.read().rpartition(')')[2].split()
        return (int(fields[11]) + int(fields[12])) * 1e6 / os.sysconf('SC_CLK_TCK')

    def resident(self):
        with open(f'/proc/{self.process.pid}/status') as status:
            return next(int(line.split()[1]) << 10 for line in status if line.startswith('VmRSS'))

    def stop(self):
        self.process.terminate()
        if self.process.wait(60) not in (0, -15):
            with open(self.log) as log:
                raise SystemExit(f'{self.process.args[0]} ends with {self.process.returncode}: '
                                 f'{log.read()[-2000:]}')


class Control:
    """Of vmimg serve (spec/control.md)."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.lines = self.socket.makefile('rb')

    def call(self, method, **params):
        self.socket.sendall(json.dumps({'method': method, 'params': params}).encode() + b'\n')
        answer = json.loads(self.lines.readline())
        if 'error' in answer:
            raise SystemExit(f'{method} {params}: {answer["error"]}')
        return answer['result']

    def snapshot(self, collection, name):
        return self.call('CreateSnapshot', Collection=collection, SnapshotType=1,
                         ResultingSnapshotCollection=name,
                         SnapshotSettings={'Synchronous': True})

    def await_seal(self, snapshot):
        """What is sealed no longer shares the disk with what is measured."""
        deadline = time.monotonic() + 300
        while not all(member['sealed'] for member in
                      self.call('Describe', Kind='snapshot', Name=snapshot)['members']):
            if time.monotonic() > deadline:
                raise SystemExit(f'{snapshot} is not sealed')
            time.sleep(0.05)


class Store(Daemon):
    """vmimg serve. Disks "vI/dJ", eight a VM, all VMs in the collection c."""
    PER_VM = 8

    @staticmethod
    def name(i):
        return f'v{i // Store.PER_VM}/d{i % Store.PER_VM}'

    def __init__(self, directory, *options, name='vmimg'):
        self.store = f'{directory}/{name}.store'
        if not os.path.exists(self.store):
            vmimg('init', self.store)
        pid_file = f'{directory}/{name}.pid'
        if os.path.exists(pid_file):
            os.unlink(pid_file)
        super().__init__(directory, name, [
            VMIMG, 'serve', f'--store={self.store}', '--nbd=@SOCKET@', f'--pid-file={pid_file}', *options],
            lambda: os.path.exists(pid_file) and os.path.getsize(pid_file) > 0)
        self.control = Control(f'{self.store}/control.sock')

    def create(self, disks, size):
        self.control.call('DefineCollection', Name='c')
        for i in range(disks):
            if i % self.PER_VM == 0:
                self.control.call('DefineVirtualMachine', Name=f'v{i // self.PER_VM}')
                self.control.call('AddMember', Member=f'v{i // self.PER_VM}', Collection='c')
            self.control.call('CreateDisk', Disk=self.name(i), Size=size)


def qsd_file(path):
    return {'driver': 'file', 'filename': path, 'aio': 'io_uring', 'cache': {'direct': True}}


def qsd(directory, name, chain, fmt):
    """qemu-storage-daemon with the export x; @chain: files, base first."""
    blockdevs, below = [], None
    for i, path in enumerate(chain):
        node = {'driver': fmt, 'node-name': f'n{i}', 'file': qsd_file(path),
                'cache': {'direct': True}, 'discard': 'unmap'}
        if fmt == 'qcow2':
            node['backing'] = below
        if i < len(chain) - 1:
            node['read-only'] = True
        below = f'n{i}'
        blockdevs += ['--blockdev', json.dumps(node)]
    export = {'type': 'nbd', 'id': 'e', 'node-name': below, 'name': 'x', 'writable': True}
    return Daemon(directory, name, [
        'qemu-storage-daemon', *blockdevs, '--nbd-server',
        'addr.type=unix,addr.path=@SOCKET@,max-connections=100', '--export', json.dumps(export)])


def hold(path, export):
    """A connection that has chosen its export and then says nothing."""
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(30)
    s.connect(path)
    name = export.encode()
    s.sendall(struct.pack('>I', 3) + b'IHAVEOPT' + struct.pack('>II', 1, len(name)) + name)
    left = 18 + 10  # the greeting; size and flags of the export
    while left:
        got = s.recv(left)
        if not got:
            raise SystemExit(f'{path}: {export}: the server has closed the connection')
        left -= len(got)
    return s
