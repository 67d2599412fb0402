#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# A served store whose path is longer than a socket's address may be, with characters that URIs quote (served
# from there): every verb works all the same, those too that go through the NBD socket.
. "$(dirname "$0")/common.bash"

deep="$dir/a b,%c#d?$(printf 'x%.0s' {1..120})"
mkdir "$deep"
cd "$deep" || exit 1
export VMIMG_STORE=store
v init "$VMIMG_STORE" && v vm create m && v disk create m/d --size=1M && v collection create c m ||
	die "no store"
ready() { # common.bash's looks here
	[ -s "$dir/pid" ] || ! kill -0 "$server"
}
serve
head -c 300000 /dev/urandom >content
echo "- a disk is written"
"$VMIMG" disk write m/d 4096 <content 2>err || die "write"
ok "a snapshot" snapshot create c@s
echo "- and read, and so is the snapshot"
"$VMIMG" disk read m/d 4096 300000 2>err | cmp - content || die "read"
"$VMIMG" disk read c@s/m/d 4096 300000 2>err | cmp - content || die "read of the snapshot"
ok "exported" snapshot export c@s "$deep/to"
ok "and verified" snapshot verify "$deep/to"
serve_stop "the server ends well"
ok "the store is sound" check "$VMIMG_STORE"
