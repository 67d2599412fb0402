#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# What the head of a disk in use hides comes back behind the deletion of the newest snapshot: the head is
# rolled and folded under the guest (FO-19).
. "$(dirname "$0")/common.bash"
# nbdsh runs the first python3, which may be one that its module is not for.
python3 -c "import nbd" 2>/dev/null || PATH=/usr/bin:$PATH
command -v nbdsh >/dev/null || { echo "no nbdsh: skipped"; exit 77; }

MIB=1048576
v init "$VMIMG_STORE" && v vm create web && v disk create web/root --size=128M || die "no store"
v collection create prod web || die "collection"
serve --fold-rate=256M

cat >client.py <<'P'
# write FIRST COUNT BYTE, expect FIRST COUNT BYTE: MiBs of that byte; busy: writes and reads the first MiB
import os
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
else:
    n = 0
    while True:
        n += 1
        h.pwrite(bytes([n % 251 + 1]) * 4096, n % 256 * 4096)
        assert h.pread(4096, n % 256 * 4096)[0] == n % 251 + 1
h.shutdown()
P

client() { # WHAT FIRST COUNT BYTE
	WHAT=$1 FIRST=$2 COUNT=$3 BYTE=$4 URI=$(nbd_uri web/root) nbdsh -c "exec(open('client.py').read())" >out 2>err
}
used() { # MiB of the layers
	echo $(($(du -s -B1 "$VMIMG_STORE/layers" | cut -f1) / MIB))
}
at_most() { # MIB
	[ "$(used)" -le "$1" ]
}

client write 0 100 1 || die "write"
ok "a snapshot" snapshot create prod@s1
client write 10 80 2 || die "write"
client busy 0 0 0 &
busy=$!
[ "$(used)" -ge 180 ] || die "$(used) MiB are not both"
ok "it goes" snapshot delete prod@s1
echo "- what the head hides comes back"
await 60 at_most 115 || die "still $(used) MiB"
kill -0 $busy || die "the client did not live: $(cat err)"
kill $busy
wait $busy 2>/dev/null
client expect 1 9 1 && client expect 10 80 2 && client expect 90 10 1 || die "wrong content: $(cat err)"
client write 20 5 3 || die "write"
ok "with whole, what little it holds" settle --whole
client expect 1 9 1 && client expect 20 5 3 && client expect 25 65 2 || die "wrong content: $(cat err)"
serve_crash
ok "the store is sound after a kill -9" check "$VMIMG_STORE"
serve
client expect 1 9 1 && client expect 20 5 3 && client expect 25 65 2 || die "wrong content: $(cat err)"
serve_stop "the server ends well"
