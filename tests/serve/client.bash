# shellcheck shell=bash
# SPDX-License-Identifier: MIT
# A client of web/root over NBD, for scripts that count MiBs: sourced after common.bash.

# nbdsh runs the first python3, which may be one that its module is not for.
python3 -c "import nbd" 2>/dev/null || PATH=/usr/bin:$PATH
command -v nbdsh >/dev/null || { echo "no nbdsh: skipped"; exit 77; }

cat >client.py <<'P'
import errno, os
MIB = 1 << 20
h.connect_uri(os.environ["URI"])
what, first = os.environ["WHAT"], int(os.environ["FIRST"])
count, byte = int(os.environ["COUNT"]), bytes([int(os.environ["BYTE"])])
if what == "write":
    for i in range(first, first + count):
        h.pwrite(byte * MIB, i * MIB)
    h.flush()
elif what == "expect":
    for i in range(first, first + count):
        assert h.pread(MIB, i * MIB) == byte * MIB, "MiB %d" % i
elif what == "fill":
    done = 0
    while True:
        try:
            h.pwrite(byte * MIB, (first + done) * MIB)
        except nbd.Error as e:
            assert e.errnum == errno.ENOSPC, e.string
            break
        done += 1
    h.flush()
    assert not done or h.pread(MIB, first * MIB) == byte * MIB, "the connection lives on"
    print(done)
else:
    n = 0
    while True:
        n += 1
        h.pwrite(bytes([n % 251 + 1]) * 4096, first * MIB + n % 256 * 4096)
        assert h.pread(4096, first * MIB + n % 256 * 4096)[0] == n % 251 + 1
h.shutdown()
P

# write, expect: COUNT MiBs of BYTE from FIRST on; fill: until ENOSPC, prints how many; busy: writes and reads
# blocks of the FIRST MiB until it is killed.
client() { # WHAT FIRST COUNT BYTE
	WHAT=$1 FIRST=$2 COUNT=$3 BYTE=$4 URI=$(nbd_uri web/root) nbdsh -c "exec(open('client.py').read())" >out 2>err
}
