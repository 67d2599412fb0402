#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# bench: what it writes, verifies, counts and prints; on files, NBD exports and disks alike.
. "$(dirname "$0")/common.bash"

blocks=2048
keys() {
	for key in iops bandwidth latency_ns min p50 p99 p99_9 max cpu_us_per_io flushes errors; do
		grep -q "\"$key\":" out || die "no $key"
	done
	has errors 0 "no errors"
}

exercise() { # TARGET
	local target=$1
	ok "$target: randwrite, each block once" bench "$target" --rw=randwrite --verify \
		--iodepth=16 --output=json
	keys
	has ios $blocks "as many requests as blocks"
	has verified $blocks "all read back"
	ok "$target: so no block was left out" bench "$target" --rw=randread --verify --output=json
	has verified $blocks "of them"
	ok "$target: randwrite, random map off" bench "$target" --rw=randwrite --norandommap \
		--verify --number-ios=3000 --output=json
	has ios 3000 "as many as asked for"
	ok "$target: randrw" bench "$target" --rw=randrw --verify --number-ios=5000 --output=json
	has ios 5000 "as many as asked for"
	ok "$target: two jobs divide it" bench "$target" --rw=write --numjobs=2 --verify --bs=8k \
		--output=json
	has ios $((blocks / 2)) "each block once"
	has verified $((blocks / 2)) "and right"
	ok "$target: flushes" bench "$target" --rw=randwrite --fsync=4 --number-ios=100 --iodepth=1 \
		--output=json
	has flushes 25 "one after every four writes"
	grep -q '"flush_latency_ns"' out || die "no latency of flushes"
	ok "$target: for a time" bench "$target" --rw=randread --runtime=1 --output=json
	[ "$(get elapsed_ns)" -ge 1000000000 ] && [ "$(get elapsed_ns)" -lt 4000000000 ] ||
		die "not a second: $(get elapsed_ns)"
	ok "$target: for humans" bench "$target" --rw=read --bs=64k
	grep -qE '^rate +[0-9]+ IOPS' out || die "no rate"
}

noise file $((blocks * 4096))
exercise raw:file
ok "raw through the page cache" bench raw:file --rw=randwrite --direct=0 --verify --output=json
has direct false "says so"
echo "- verify finds a changed byte"
v bench raw:file --rw=write --verify || die "write"
printf x | dd of=file bs=1 seek=$((4096 * 77 + 2000)) conv=notrunc status=none
fails 1 "at $((4096 * 77))" "and says where" bench raw:file --rw=randread --verify
fails 1 "none" "a file that is not there" bench raw:none
fails 1 "too small" "a file without a block" bench raw:/dev/null

echo "- an NBD server of others"
qemu-nbd -t -f raw -e 8 -x disk -k "$dir/nbd" file &
server=$!
trap 'kill $server 2>/dev/null; wait; rm -rf "$dir"' EXIT
for ((i = 0; i < 100; i++)); do [ -S nbd ] || sleep 0.1; done
uri="nbd+unix:///disk?socket=$dir/nbd"
exercise "$uri"
echo "- what it wrote is in the file"
v bench "$uri" --rw=write --verify || die "write"
ok "and right" bench raw:file --rw=randread --verify
ok "requests larger than a socket's buffer" bench "$uri" --rw=write --bs=1M --iodepth=4 --verify
fails 1 "no export|not available|not present" "an export that is not there" \
	bench "nbd+unix:///none?socket=$dir/nbd"
fails 1 "No such file" "a server that is not there" bench nbd+unix:///disk?socket=none
echo "- a server that goes away is an error"
"$VMIMG" bench "$uri" --rw=randwrite --runtime=20 >out 2>err </dev/null &
client=$!
sleep 0.5
kill -KILL $server
wait $client
is $? 1 "and an end"
kill -0 $server 2>/dev/null && die "the server lives"
rm -f nbd
qemu-nbd -t -r -f raw -x disk -k "$dir/nbd" file &
server=$!
for ((i = 0; i < 100; i++)); do [ -S nbd ] || sleep 0.1; done
ok "a read-only export is read" bench "$uri" --rw=read
fails 1 "only read" "and not written" bench "$uri" --rw=write
kill $server; wait $server

fails 2 "multiple of 512" "a block size of 1000" bench raw:file --bs=1000
fails 2 "iodepth" "a depth of 0" bench raw:file --iodepth=0

init
v vm create m || die "vm"
for d in a b; do
	v disk create m/$d --size=$((blocks * 4096)) || die "disk"
done
v collection create c m || die "collection"
exercise m/a
ok "a snapshot" snapshot create c@s
exercise m/a
ok "several targets at once" bench m/a m/b raw:file --rw=randwrite --verify --output=json
has ios $((3 * blocks)) "each of them wholly"
has verified $((3 * blocks)) "and right"
ok "a snapshot's disk is read" bench c@s/m/a --rw=randread --output=json
fails 1 "only read" "and not written" bench c@s/m/a --rw=randwrite
fails 1 "m/none" "a disk that is not there" bench m/none
sound "the store is sound"
