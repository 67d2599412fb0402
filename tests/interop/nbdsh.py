# SPDX-License-Identifier: MIT
"""Run by nbdsh against the scene of common.bash, with requests of at most 1 MiB: each kind of request, what it does, how it
is refused. SOCKET: the server's; the working directory has the files "before" and "after"."""
import errno, os

MIB = 1 << 20
before, after = (open(name, 'rb').read() for name in ('before', 'after'))
SIZE = len(after)


def claim(text, holds=True):
    print('-', text, flush=True)
    if not holds:
        raise SystemExit(f'FAILED: {text}')


def connect(export, contexts=(), structured=True):
    handle = nbd.NBD()
    handle.set_request_structured_replies(structured)
    for context in contexts:
        handle.add_meta_context(context)
    handle.set_strict_mode(0)  # the server is what is asked, not libnbd
    handle.connect_uri(f'nbd+unix:///{export}?socket={os.environ["SOCKET"]}')
    return handle


def refuses(text, code, call, *arguments, **options):
    try:
        call(*arguments, **options)
    except nbd.Error as error:
        claim(f'{text}: {errno.errorcode.get(error.errnum, error.errnum)}', error.errnum == code)
    else:
        claim(f'{text}: refused', False)


def extents(handle, offset, length, context, flags=0):
    """[(length, value)...] of one request."""
    found = []

    def store(name, start, entries, err):
        if name == context:
            claim(f'{context} starts where asked', start == offset)
            found.extend(zip(entries[0::2], entries[1::2]))

    handle.block_status(length, offset, store, flags)
    return found


# --- reads ---
for structured in (True, False):
    h = connect('m/a', structured=structured)
    claim(f'structured replies: {structured}',
          h.get_structured_replies_negotiated() == structured)
    claim('the size', h.get_size() == SIZE)
    claim('a read', h.pread(MIB, MIB) == after[MIB:2 * MIB])
    claim('an unaligned read', h.pread(1001, MIB - 500) == after[MIB - 500:MIB + 501])
    claim('the last byte', h.pread(1, SIZE - 1) == after[-1:])
    refuses('one byte more', errno.EINVAL, h.pread, 1, SIZE)
    refuses('a read across the end', errno.EINVAL, h.pread, 4096, SIZE - 512)
    refuses('a read far out', errno.EINVAL, h.pread, 4096, 1 << 62)
    refuses('a read larger than allowed', errno.EINVAL, h.pread, MIB + 1, 0)
    claim('the connection lives on', h.pread(8, 0) == after[:8])
    h.shutdown()

h = connect('m/a')
chunks = []
claim('a structured read', h.pread_structured(
    MIB, 0, lambda data, offset, status, err: chunks.append((offset, data, status)) or 0) ==
    after[:MIB])
claim('in chunks of data or holes that cover it',
      sum(len(data) for _, data, status in chunks if status == nbd.READ_DATA) == MIB)
whole = []
h.pread_structured(MIB, 0, lambda data, offset, status, err: whole.append(status) or 0,
                   nbd.CMD_FLAG_DF)
claim("don't fragment: one chunk", len(whole) == 1)

# --- writes ---
data = bytes(range(256)) * 16
h.pwrite(data, 3 * MIB)
claim('a write', h.pread(4096, 3 * MIB) == data)
h.pwrite(b'x' * 7, 3 * MIB + 509)
claim('an unaligned write', h.pread(4096, 3 * MIB) == data[:509] + b'x' * 7 + data[516:])
h.pwrite(data, 3 * MIB, nbd.CMD_FLAG_FUA)
claim('a write with FUA', h.pread(4096, 3 * MIB) == data)
h.flush()
claim('a flush')
refuses('a write past the end', errno.ENOSPC, h.pwrite, data, SIZE - 512)
refuses('a write larger than allowed', errno.EINVAL, h.pwrite, bytes(MIB + 512), 0)
claim('the connection lives on', h.pread(4096, 3 * MIB) == data)

# --- several connections ---
claim('several connections are allowed', h.can_multi_conn())
other = connect('m/a')
other.pwrite(b'other' * 100, 5 * MIB)
claim("what one has written the other reads", h.pread(500, 5 * MIB) == b'other' * 100)
h.flush()  # covers the other's write (multi-conn)
claim("and its flush covers it")
other.shutdown()

# --- zeroes and trim ---
noise = os.urandom(MIB)


def put_noise():
    h.pwrite(noise, 6 * MIB)


for flags, what in ((0, 'write zeroes'), (nbd.CMD_FLAG_NO_HOLE, 'without a hole'),
                    (nbd.CMD_FLAG_FUA, 'with FUA'),
                    (nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA, 'without a hole, with FUA'),
                    (nbd.CMD_FLAG_FAST_ZERO, 'fast')):
    put_noise()
    h.zero(65536, 6 * MIB + 4096, flags)
    claim(f'write zeroes, {what}', h.pread(MIB, 6 * MIB) ==
          noise[:4096] + bytes(65536) + noise[69632:])
put_noise()
refuses('fast zeroes without a hole', errno.ENOTSUP, h.zero, 65536, 6 * MIB,
        nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)
claim('nothing has changed', h.pread(MIB, 6 * MIB) == noise)
h.zero(1000, 6 * MIB + 100)
claim('unaligned zeroes', h.pread(2000, 6 * MIB) == noise[:100] + bytes(1000) + noise[1100:2000])
h.zero(8 * MIB, 8 * MIB)
claim('zeroes may be longer than the largest write', h.pread(MIB, 9 * MIB) == bytes(MIB))
refuses('zeroes past the end', errno.ENOSPC, h.zero, 4096, SIZE - 512)
put_noise()
h.trim(65536, 6 * MIB)
trimmed = h.pread(MIB, 6 * MIB)
claim('a trim leaves the rest alone', trimmed[65536:] == noise[65536:])
claim('what is trimmed reads as zeros', trimmed[:65536] == bytes(65536))
h.trim(4096, 6 * MIB + 65536, nbd.CMD_FLAG_FUA)
claim('a trim with FUA', h.pread(4096, 6 * MIB + 65536) == bytes(4096))
refuses('a trim past the end', errno.ENOSPC, h.trim, 4096, SIZE)
h.cache(MIB, 0)
claim('cache')
refuses('cache past the end', errno.EINVAL, h.cache, 4096, SIZE)
refuses('block status without a context', errno.EINVAL, h.block_status, 4096, 0,
        lambda *a: 0)
h.shutdown()

# --- contexts ---
ALLOCATION, DEPTH, CHANGED = 'base:allocation', 'vmimg:depth', 'vmimg:changed:c@s'
h = connect('m/b', (ALLOCATION, DEPTH, CHANGED))
for context in (ALLOCATION, DEPTH, CHANGED):
    claim(f'{context} is there', h.can_meta_context(context))
claim('an empty disk is one hole', extents(h, 0, SIZE, ALLOCATION) == [(SIZE, 3)])
claim('held by nothing', extents(h, 0, SIZE, DEPTH) == [(SIZE, 0xffffffff)])
h.pwrite(b'd' * 8192, MIB)
claim('data', extents(h, 0, SIZE, ALLOCATION) ==
      [(MIB, 3), (8192, 0), (SIZE - MIB - 8192, 3)])
claim('of the newest layer', extents(h, MIB, 8192, DEPTH) == [(8192, 0)])
claim('changed since the snapshot', extents(h, 0, SIZE, CHANGED) ==
      [(MIB, 0), (8192, 1), (SIZE - MIB - 8192, 0)])
h.zero(4096, MIB)
claim('zeroes are no data', extents(h, MIB, 8192, ALLOCATION) == [(4096, 3), (4096, 0)])
claim('but a change', extents(h, MIB, 8192, CHANGED) == [(8192, 1)])
claim('within the range asked for',
      sum(length for length, _ in extents(h, MIB + 512, 1024, ALLOCATION)) == 1024)
claim('one extent when one is asked for',
      extents(h, 0, SIZE, ALLOCATION, nbd.CMD_FLAG_REQ_ONE) == [(MIB + 4096, 3)])
refuses('block status past the end', errno.EINVAL, h.block_status, 4096, SIZE, lambda *a: 0)
h.shutdown()
h = connect('m/a', (DEPTH,))
claim('data of an older layer', extents(h, 0, 4096, DEPTH)[0][1] == 1)
h.shutdown()
h = connect('m/a', ('vmimg:changed:c@none', 'other:thing'))
claim('no context of a snapshot that is not there', not h.can_meta_context('vmimg:changed:c@none'))
claim('nor of another kind', not h.can_meta_context('other:thing'))
h.shutdown()

# --- snapshots ---
h = connect('c@s/m/a', (ALLOCATION,))
claim('a snapshot is as it was', h.pread(MIB, MIB) == before[MIB:2 * MIB])
claim('it says that it is read-only', h.is_read_only())
for what, call in (('write', lambda: h.pwrite(b'x' * 512, 0)),
                   ('write zeroes', lambda: h.zero(512, 0)),
                   ('trim', lambda: h.trim(512, 0))):
    refuses(f'no {what} to a snapshot', errno.EPERM, call)
claim('it is as it was', h.pread(MIB, 0) == before[:MIB])
claim('its data', extents(h, 0, SIZE, ALLOCATION) == [(SIZE // 2, 0), (SIZE // 2, 3)])
h.shutdown()

# --- many requests in flight, replies in any order ---
h = connect('m/b')
buffers, cookies = [], []
for i in range(200):
    buffer = nbd.Buffer.from_bytearray(bytearray(bytes([i]) * 4096))
    buffers.append(buffer)
    cookies.append(h.aio_pwrite(buffer, 2 * MIB + i * 4096))
while h.aio_in_flight():
    h.poll(-1)
claim('200 writes at once', all(h.aio_command_completed(c) for c in cookies))
got = h.pread(200 * 4096, 2 * MIB)
claim('each in its place', got == b''.join(bytes([i]) * 4096 for i in range(200)))
h.shutdown()
print('all claims hold')
