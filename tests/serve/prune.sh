#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Retention beside clients (RT-5): a snapshot that a client reads stays, one whose export nobody uses goes.
. "$(dirname "$0")/common.bash"
# nbdsh runs the first python3, which may be one that its module is not for.
python3 -c "import nbd" 2>/dev/null || PATH=/usr/bin:$PATH
command -v nbdsh >/dev/null || { echo "no nbdsh: skipped"; exit 77; }

v init "$VMIMG_STORE" && v vm create web && v disk create web/root --size=1M || die "no store"
v collection create prod web || die "collection"
serve
for i in 1 2 3; do
	head -c 1M /dev/zero | tr '\0' "$i" >"data$i"
	"$VMIMG" disk write web/root 0 <"data$i" && v snapshot create "prod@s$i" || die "snapshot $i"
done
URI=$(nbd_uri prod@s2/web/root) nbdsh -c '
import os
h.connect_uri(os.environ["URI"])
h.pread(4096, 0)
h.shutdown()' 2>err || die "a client of s2"
URI=$(nbd_uri prod@s1/web/root) nbdsh -c '
import os, time
h.connect_uri(os.environ["URI"])
assert h.pread(4096, 0) == b"1" * 4096
open("reading", "w").close()
while not os.path.exists("enough"):
    time.sleep(0.05)
assert h.pread(4096, 4096) == b"1" * 4096
h.shutdown()' 2>client.err &
client=$!
await 20 test -e reading || die "$(cat client.err)"

ok "what nobody reads goes" snapshot prune prod --keep-last=1 --output=json
has deleted 1 "one of the two"
grep -q '"in use"' out || die "the reason for s1 is not told"
fails 1 "none of this name" "it is s2" snapshot show prod@s2
ok "the one that is read stays" snapshot show prod@s1
touch enough
wait "$client" || die "its client: $(cat client.err)"
gone() {
	v snapshot prune prod --keep-last=1 --output=json && [ "$(get deleted)" = 1 ]
}
echo "- and goes when its client has gone"
await 20 gone || die "it stays"
fails 1 "none of this name" "it is s1" snapshot show prod@s1
serve_stop "the server ends"
ok "the store is sound" check "$VMIMG_STORE"
