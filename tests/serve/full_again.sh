#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# A disk that is full and stays full (CT-9, CT-13): others take every block that comes free, and still the
# catalog takes changes, the server is killed and comes back, and snapshots can be deleted.
. "$(dirname "$0")/small.bash"
begin_on 64M 64M

client write 0 8 1 || die "write"
ok "a snapshot" snapshot create prod@s1
client write 0 8 2 || die "write"
ok "another one" snapshot create prod@s2
ok "nothing is left to fold" settle

full() { # every block, those too that come free with the next commit of the journal
	for size in 64k 1k 1k; do
		dd if=/dev/zero of=fs/balloon bs=$size conv=notrunc oflag=append status=none 2>err
		sync -f fs
	done
	grep -q 'No space left' err || die "not full: $(cat err)"
}
reserve=$VMIMG_STORE/catalog.db.reserve

full
[ -e "$reserve" ] || die "no reserve"
for i in $(seq 40); do
	v vm create "vm$i" || die "vm$i: $(cat err)"
	full
done
echo "- 40 changes on a full disk, which took the reserve"
[ ! -e "$reserve" ] || die "the reserve was not needed"
ok "a snapshot is deleted" snapshot delete prod@s1 --no-wait
for i in 1 2 3; do
	kill -KILL "$server"
	wait "$server" 2>wait_err
	full
	serve
	ok "a server that was killed is there again ($i), and takes changes" vm delete "vm$i"
	full
done
serve_stop "it ends well"
full
ok "an idle store takes changes" vm delete vm4
serve
rm -f "$reserve" # as if others had been faster than the log
full
for i in 5 6 7; do
	ok "with what its log has, a server takes changes ($i)" vm delete "vm$i"
	serve_stop "ends well"
	full
	serve
	full
done
serve_stop "and once more"
full
ok "so does an idle store" vm delete vm8
full
ok "again and again" vm delete vm9
rm fs/balloon
ok "and with room again all is well" snapshot create prod@s3
[ -e "$reserve" ] || die "the reserve was not made again"
ok "the store is sound" check "$VMIMG_STORE"
"$VMIMG" disk read prod@s2/web/root 0 8M | tr -d '\002' | wc -c >rest
is "$(cat rest)" 0 "and its snapshot holds what it did"
