#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# fio's nbd engine: random and mixed loads with verification, several connections, flushes.
. "$(dirname "$0")/common.bash"
needs fio
fio --enghelp 2>/dev/null | grep -qw nbd || { echo "this fio has no nbd engine: skipped"; exit 77; }

seconds=${VMIMG_TEST_SECONDS:-30}
load() { # CLAIM EXPORT OPTION...
	local claim=$1 export=$2
	shift 2
	run "$claim" fio --name=x --ioengine=nbd --uri="$(uri "$export")" --size=${mib}M \
		--verify_fatal=1 --verify_dump=0 --output-format=terse --group_reporting "$@"
}

mib=64
scene
serve
load "random writes, verified" m/b --rw=randwrite --bs=4k --iodepth=32 --verify=crc32c
load "sequential, large" m/b --rw=write --bs=256k --iodepth=8 --verify=crc32c
load "mixed sizes, unaligned to blocks" m/b --rw=randwrite --bsrange=512-64k --bs_unaligned=0 \
	--iodepth=16 --verify=sha1
load "reads and writes, mixed" m/b --rw=randrw --bs=8k --iodepth=32 --verify=crc32c --loops=2
load "with flushes" m/b --rw=randwrite --bs=4k --iodepth=8 --fsync=16 --io_size=8M --verify=crc32c
load "with trims" m/b --rw=randtrimwrite --bs=4k --iodepth=8 --io_size=8M
load "one at a time" m/b --rw=randwrite --bs=4k --iodepth=1 --io_size=8M --verify=md5
load "four connections, each its quarter" m/b --rw=randwrite --bs=4k --iodepth=8 --numjobs=4 \
	--size=$((mib / 4))M --offset_increment=$((mib / 4))M --verify=crc32c
load "for a while" m/b --rw=randwrite --bs=4k --iodepth=32 --verify=crc32c --verify_backlog=1024 \
	--time_based --runtime=$((seconds / 10 + 1))
load "a snapshot's disk" c@s/m/a --rw=randread --bs=4k --iodepth=32 --readonly
run "which is as it was" nbdcopy "$(uri c@s/m/a)" copy
same copy before "every byte"
stop_serving
sound "the store is sound"
