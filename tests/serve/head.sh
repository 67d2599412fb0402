#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# What the head of a disk in use hides comes back behind the deletion of the newest snapshot: the head is
# rolled and folded under the guest (FO-19).
. "$(dirname "$0")/common.bash"
. "$tests/serve/client.bash"

MIB=1048576
v init "$VMIMG_STORE" && v vm create web && v disk create web/root --size=128M || die "no store"
v collection create prod web || die "collection"
serve --fold-rate=256M

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
