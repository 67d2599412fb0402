#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# nbdfuse: an export as a file, with an ext4 file system on it and fio verifying on top; a snapshot taken
# meanwhile is a file system that recovers. Needs root and /dev/fuse.
. "$(dirname "$0")/common.bash"
needs nbdfuse mkfs.ext4 fio
[ "$(id -u)" = 0 ] && [ -w /dev/fuse ] || { echo "no root or no /dev/fuse: skipped"; exit 77; }

loop= fuse=
unmount() {
	! mountpoint -q fs || umount fs
	[ -z "$loop" ] || losetup -d "$loop"
	loop=
	! mountpoint -q fuse || umount fuse
	[ -z "$fuse" ] || wait "$fuse"
	fuse=
}
trap 'unmount 2>/dev/null; leave' EXIT

mount_export() { # EXPORT
	nbdfuse -C 4 fuse "$(uri "$1")" >fuse.log 2>&1 &
	fuse=$!
	local i
	for ((i = 0; i < 100; i++)); do
		! mountpoint -q fuse || return 0
		sleep 0.1
	done
	cp fuse.log err
	die "nbdfuse does not mount $1"
}

mib=128
init
v vm create m || die "vm"
v disk create m/a --size=${mib}M || die "disk"
v collection create c m || die "collection"
serve
mkdir fuse fs
mount_export m/a
is "$(stat -c %s fuse/nbd)" $((mib << 20)) "a file of the disk's size"
run "a file system on it" mkfs.ext4 -q -F -E lazy_itable_init=0 fuse/nbd
loop=$(losetup --find --show fuse/nbd 2>err) || { cat err; echo "no loop device: skipped"; exit 77; }
run "is mounted" mount "$loop" fs
run "fio writes and verifies" fio --name=x --directory=fs --size=48M --rw=randwrite --bs=4k \
	--iodepth=16 --ioengine=libaio --direct=1 --verify=crc32c --verify_fatal=1 --fsync=64 \
	--output-format=terse
noise fs/first 1000000
sync -f fs
sum=$(sha256sum <fs/first)
fio --name=y --directory=fs --size=16M --rw=randwrite --bs=4k --fsync=32 --time_based --runtime=4 \
	--output-format=terse >fio.log 2>&1 &
load=$!
sleep 1
ok "a snapshot under load" snapshot create c@live
wait $load || { cp fio.log err; die "fio beside the snapshot"; }
noise fs/second 1000000
unmount
run "sound after all that" bash -c "nbdcopy '$(uri m/a)' copy && e2fsck -fn copy"

run "the snapshot, copied" nbdcopy "$(uri c@live/m/a)" copy
echo "- recovers like after a power loss"
e2fsck -fy copy >out 2>err
[ $? -le 1 ] || die "e2fsck"
run "and is sound" e2fsck -fn copy
run "is mounted" mount -o loop copy fs
is "$(sha256sum <fs/first)" "$sum" "what was synced before it is there"
[ ! -e fs/second ] || die "what came after it is there"
umount fs

mount_export c@live/m/a
run "a snapshot's disk is a file too" cmp -n 4096 -i 4096 fuse/nbd copy
echo "- which is not written"
! dd if=/dev/zero of=fuse/nbd bs=4096 count=1 conv=notrunc status=none 2>err || die "it is"
unmount
stop_serving
sound "the store is sound"
