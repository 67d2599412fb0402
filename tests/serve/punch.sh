#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Space under a busy, served disk comes back behind a deletion before any fold pays (PU): as holes in the
# layer's file, which nobody sees but who counts.
. "$(dirname "$0")/common.bash"
. "$tests/serve/client.bash"
truncate -s 1M hole && [ "$(du -B1 hole | cut -f1)" -lt 1048576 ] || { echo "no holes here: skipped"; exit 77; }

MIB=1048576
v init "$VMIMG_STORE" && v vm create web && v disk create web/root --size=64M || die "no store"
v collection create prod web || die "collection"
# So slow that no fold ends while this runs; holes are not paced by bytes read.
serve --fold-rate=1M

used() { # bytes of the layers
	du -s -B1 "$VMIMG_STORE/layers" | cut -f1
}

client write 0 4 9 || die "write"
ok "a snapshot of the base" snapshot create prod@s0
client write 0 48 1 || die "write"
ok "another one, of all" snapshot create prod@s1
client write 8 9 2 || die "write"
ok "one of little" snapshot create prod@s2
client busy 60 0 0 &
busy=$!
before=$(used)
ok "the large one is deleted" snapshot delete prod@s1
less() { # MIB
	[ "$(used)" -le $((before - $1 * MIB)) ]
}
echo "- nine MiB come back"
await 30 less 8 || die "$before bytes before, now $(used)"
v job list --output=json || die "no list of jobs"
folds=$(python3 -c 'import json, sys
print(sum(j["job_type"] == 50 and j["job_state"] == 7 for j in json.load(sys.stdin)))' <out)
is "$folds" 0 "and no fold has ended"
kill -0 $busy || die "the client did not live: $(cat err)"
kill $busy
wait $busy 2>/dev/null
client expect 0 8 1 && client expect 8 9 2 && client expect 17 31 1 || die "wrong content"
ok "the snapshot above verifies" snapshot verify prod@s2
ok "the one below too" snapshot verify prod@s0
serve_crash
serve --fold-rate=1M
client expect 0 8 1 && client expect 8 9 2 && client expect 17 31 1 || die "wrong content after a kill -9"
serve_stop "the server ends well"
ok "the store is sound" check "$VMIMG_STORE"
"$VMIMG" disk read prod@s2/web/root 8M 9M | tr -d '\002' | wc -c >rest
is "$(cat rest)" 0 "the snapshot holds what it did"
serve
ok "and all is folded" settle --whole
client expect 0 8 1 && client expect 8 9 2 && client expect 17 31 1 || die "wrong content when folded"
serve_stop "the server ends well"
ok "the store is sound" check "$VMIMG_STORE"
