#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# qemu-img and qemu-io: convert out and in, map, compare, info; patterns written and verified.
. "$(dirname "$0")/common.bash"
needs qemu-img qemu-io

scene
serve
run "info" qemu-img info --output=json "$(uri m/a)"
shows "\"virtual-size\": $((mib << 20))" "the size"
run "map" qemu-img map --output=json "$(uri m/a)"
is "$(grep -c '"data": true' out)" 1 "the half with data"
shows "\"start\": 0, \"length\": $((mib << 19)),.*\"data\": true" "is the first"
shows "\"length\": $((mib << 19)),.*\"zero\": true, \"data\": false" "the rest is zero"
for format in raw qcow2; do
	run "convert to $format" qemu-img convert -O $format "$(uri m/a)" copy
	run "is the same" qemu-img compare -f raw -F $format after copy
	run "as NBD says too" qemu-img compare -f raw -F $format "$(uri m/a)" copy
	run "the snapshot to $format" qemu-img convert -f raw -O $format "$(uri c@s/m/a)" copy
	run "is as it was" qemu-img compare -f raw -F $format before copy
	run "convert from $format into a disk" qemu-img convert -n -f $format -O raw copy "$(uri m/b)"
	run "is the same" qemu-img compare -f raw -F raw before "$(uri m/b)"
	run "out of order, many at once" qemu-img convert -n -W -m 16 -f raw -O raw after "$(uri m/b)"
	run "is the same" qemu-img compare "$(uri m/a)" "$(uri m/b)"
done
refused 'mismatch' "a disk and its snapshot differ" qemu-img compare "$(uri m/a)" "$(uri c@s/m/a)"
refused '.' "nothing is converted into a snapshot" \
	qemu-img convert -n -f raw -O raw after "$(uri c@s/m/a)"
run "a qcow2 overlay over a snapshot's export" \
	qemu-img create -f qcow2 -F raw -b "$(uri c@s/m/a)" over.qcow2
run "reads through it" qemu-img compare -f raw -F qcow2 before over.qcow2
run "bench" qemu-img bench -f raw -c 2000 -d 32 -s 4096 "$(uri m/b)"

io() { # CLAIM COMMAND...
	local claim=$1 c
	local -a commands=()
	shift
	for c; do commands+=(-c "$c"); done
	run "$claim" qemu-io -f raw "${commands[@]}" "$(uri m/b)"
	! grep -qiE 'fail|error|mismatch' out || die "$claim"
}
io "patterns" "write -P 0xa1 0 64k" "write -P 0xb2 64k 64k" "read -P 0xa1 0 64k" \
	"read -P 0xb2 64k 64k" "read -P 0xb2 100k 4k"
io "unaligned" "write -P 0xc3 777 12345" "read -P 0xa1 0 777" "read -P 0xc3 777 12345" \
	"read -P 0xa1 13122 4096"
io "FUA and flush" "write -f -P 0xd4 1M 4k" "flush" "read -P 0xd4 1M 4k"
io "zeroes" "write -P 0xe5 2M 1M" "write -z 2M 512k" "read -P 0 2M 512k" "read -P 0xe5 2560k 512k"
io "zeroes that may be holes" "write -P 0xe5 2M 1M" "write -z -u 2M 512k" "read -P 0 2M 512k"
io "zeroes without a hole, with FUA" "write -z -f 2560k 256k" "read -P 0 2560k 256k"
io "discard" "write -P 0xf6 4M 1M" "discard 4M 512k" "read -P 0xf6 4608k 512k"
io "many at once" "aio_write -P 1 5M 64k" "aio_write -P 2 5184k 64k" "aio_write -P 3 5248k 64k" \
	"aio_flush" "aio_read -P 1 5M 64k" "aio_read -P 2 5184k 64k" "aio_read -P 3 5248k 64k" \
	"aio_flush"
io "vectors" "writev -P 7 6M 4k 8k 512 12k" "readv -P 7 6M 12k 512 8k 4k"
io "after reconnecting" "read -P 0xd4 1M 4k" "read -P 7 6M 4k"
stop_serving
"$VMIMG" disk read m/b 1M 4096 >copy || die "disk read"
is "$(tr -d '\324' <copy | wc -c)" 0 "what qemu-io wrote is in the store"
sound "the store is sound"
