#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# A full disk under a served store (SG): a client sees ENOSPC and nothing worse, snapshots are refused below
# the reserve, deleting one works, and with the space that it gives back everything goes on. On a small ext4
# of the script's own, in a mount namespace of its own.
. "$(dirname "$0")/small.bash"
begin_on 160M 256M


client write 0 24 1 || die "write"
ok "a snapshot" snapshot create prod@s1
client write 0 24 2 || die "write"
ok "another one" snapshot create prod@s2
ok "seals give their spare space back" settle
echo "- a client fills the disk, and sees ENOSPC"
client fill 24 0 3 || die "what it saw was not that"
filled=$(cat out)
[ "$filled" -ge 24 ] || die "only $filled MiB fitted"
left=$(df --output=avail -B1 fs | tail -n 1)
echo "- nearly all of the space was given out ($left bytes are left)"
[ "$left" -lt 4194304 ] || die "$left bytes are left"
client expect 0 24 2 && client expect 24 "$filled" 3 || die "what was acknowledged is not there"
fails 1 '"code": 5' "5: no snapshot below the reserve" snapshot create prod@s3 --output=json
grep -q 'below the reserve' err || die "the reason is not told"
ok "what is there can be looked at" tree
ok "a snapshot is deleted all the same" snapshot delete prod@s1

more() {
	[ "$(df --output=avail -B1 fs | tail -n 1)" -gt $((left + 20 * 1048576)) ]
}
echo "- its space comes back"
await 60 more || die "$(df -B1 fs)"
echo "- and writes go on"
client write $((24 + filled)) 8 4 || die "write"
client expect $((24 + filled)) 8 4 && client expect 0 24 2 || die "wrong content"
serve_stop "the server ends well"
ok "the store is sound" check "$VMIMG_STORE"
"$VMIMG" disk read prod@s2/web/root 0 1M | tr -d '\002' | wc -c >rest
is "$(cat rest)" 0 "and the other snapshot holds what it did"
