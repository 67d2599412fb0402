#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# A full disk on which no fold has room (SG-4): holes give back what a deleted snapshot alone held (PU-3). On
# a small ext4 of the script's own, in a mount namespace of its own.
. "$(dirname "$0")/small.bash"
begin_on 240M 512M

available() {
	df --output=avail -B1 fs | tail -n 1
}

client write 0 4 9 || die "write"
ok "a snapshot of the base" snapshot create prod@s0
client write 0 40 1 || die "write"
ok "another one" snapshot create prod@s1
client write 0 30 2 || die "write"
ok "and one that hides most of it" snapshot create prod@s2
ok "seals give their spare space back" settle
echo "- a client fills the disk"
client fill 64 0 3 || die "what it saw was not ENOSPC"
left=$(available)
[ "$left" -lt 4194304 ] || die "$left bytes are left"
ok "a snapshot is deleted all the same" snapshot delete prod@s1 --no-wait
more() {
	[ "$(available)" -gt $((left + 25 * 1048576)) ]
}
echo "- what it alone held comes back, though no fold has room"
await 60 more || die "$left bytes were left, now $(available)"
client expect 0 30 2 && client expect 30 10 1 || die "wrong content"
ok "the snapshot above verifies" snapshot verify prod@s2
serve_crash
serve
echo "- and writes go on"
client write 200 8 4 || die "write"
client expect 0 30 2 && client expect 30 10 1 && client expect 200 8 4 || die "wrong content after a kill -9"
serve_stop "the server ends well"
ok "the store is sound" check "$VMIMG_STORE"
"$VMIMG" disk read prod@s0/web/root 0 4M | tr -d '\011' | wc -c >rest
is "$(cat rest)" 0 "the snapshot below holds what it did"
