#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Image files without a store: create, info, map, convert, check.
. "$(dirname "$0")/common.bash"

noise a.raw 5M
ok "a raw image" create -f raw new.raw 3M
is "$(stat -c %s new.raw)" 3145728 "is a file of that size"
fails 1 "new.raw" "an image that is there is kept" create new.raw 1M
fails 2 "size" "an empty image needs a size" create x.vmo
ok "an overlay on a raw image" create -b a.raw top.vmo --output=json
has virtual_size 5242880 "has its size"
has format vmo "is an overlay"
ok "a chain" info --backing-chain top.vmo --output=json
is "$(grep -c '"filename"' out)" 2 "has two images"
ok "the human form of info" info top.vmo
grep -qE '^virtual_size +5 MiB' out || die "no size for humans"

ok "the map of an overlay" map top.vmo --output=json
grep -q '"state": "data", "layer": ".*a.raw"' out || die "the base's data is not in the map"
ok "the human form of map" map top.vmo
grep -q 'a.raw' out || die "no layer"

ok "an overlay reads as its base" convert -O raw top.vmo flat.raw
same a.raw flat.raw "byte for byte"
ok "raw to vmo" convert -O vmo a.raw copy.vmo
ok "vmo to raw" convert copy.vmo back.raw
same a.raw back.raw "and back"
ok "the copy stands alone" info --backing-chain copy.vmo --output=json
is "$(grep -c '"filename"' out)" 1 "without a base"
fails 1 "back.raw" "a file that is there is not overwritten" convert a.raw back.raw
fails 2 "needs -O qcow2" "only qcow2 is compressed" convert -c a.raw b.raw
fails 2 "power of two" "clusters have sizes of their own" convert -O qcow2 --cluster-size=3000 a.raw b.qcow2
[ ! -e b.qcow2 ] || die "a file was left behind"
fails 1 "nothing.raw" "a source that is not there" convert nothing.raw x.raw
exec 9>progress
ok "progress on a descriptor" --progress=9 convert a.raw slow.raw --rate-limit=20M/s
exec 9>&-
tail -n 1 progress | grep -q '"operation": "convert", .*"percent_complete": 100}' || die "no progress"

ok "a sound image" check copy.vmo
ok "its report" check copy.vmo --output=json
has result 0 "says so"
cp copy.vmo bad.vmo
printf 'damage' | dd of=bad.vmo bs=1 seek=16 conv=notrunc status=none
printf 'damage' | dd of=bad.vmo bs=1 seek=4112 conv=notrunc status=none
v check bad.vmo
is $? 2 "damage in both headers is corruption"
v check nothing.vmo
is $? 1 "what is not there could not be checked"

# Q2W: raw, qcow2 and vmo into qcow2 and back; odd sizes, holes, zeros, all that compresses and nothing that does.
noise odd.raw 3000320
truncate -s 2M holes.raw
truncate -s 65536 one.raw && printf x | dd of=one.raw conv=notrunc status=none
{ head -c 1M /dev/zero; yes vmimg | head -c 1M; head -c 100K /dev/urandom; } >mixed.raw
truncate -s 1T huge.raw && printf far | dd of=huge.raw bs=1M seek=900000 conv=notrunc status=none
for image in odd holes one mixed; do
	for how in "" "-c" "-c --cluster-size=4K" "--cluster-size=512" "--cluster-size=2M"; do
		rm -f q.qcow2 q.raw
		# shellcheck disable=SC2086
		ok "$image to qcow2 $how" convert $how -O qcow2 $image.raw q.qcow2
		ok "is sound" check q.qcow2
		ok "and comes back" convert q.qcow2 q.raw
		cmp $image.raw q.raw || die "$image $how: another image"
		[ "$(stat -c %A q.qcow2)" = -rw------- ] || die "others may read it"
		command -v qemu-img >/dev/null || continue
		qemu-img check -q q.qcow2 || die "qemu-img check: $image $how"
		qemu-img compare -q $image.raw q.qcow2 || die "qemu-img compare: $image $how"
	done
done
ok "vmo to compressed qcow2" convert -c -O qcow2 top.vmo fromv.qcow2 --output=json
has cluster_size 65536 "has clusters"
ok "qcow2 to vmo" convert -O vmo fromv.qcow2 fromq.vmo
ok "vmo to raw" convert fromq.vmo fromv.raw
same a.raw fromv.raw "and nothing is lost on the way"
ok "an image of 1 TiB" convert -c -O qcow2 huge.raw huge.qcow2
[ "$(stat -c %s huge.qcow2)" -lt 500000 ] || die "is not as large as its data"
fails 1 "b.qcow2|one.raw" "nothing is written over" convert -O qcow2 a.raw one.raw

echo "- a convert that is killed leaves no image"
noise big.raw 40M
"$VMIMG" convert -c -O qcow2 --rate-limit=4M/s big.raw big.qcow2 >out 2>err &
sleep 1
kill -9 $!
wait $! 2>/dev/null
[ ! -e big.qcow2 ] || die "a part of an image has its name"
ls big.qcow2.*.part >/dev/null || die "nor was there one"
ok "which does not stand in the way" convert -c -O qcow2 big.raw big.qcow2

command -v qemu-img >/dev/null || { echo "no qemu-img: qcow2 is not checked"; exit 0; }
qemu-img check -q huge.qcow2 || die "qemu-img check of the large one"
qemu-img compare -q huge.raw huge.qcow2 || die "qemu-img compare of the large one"
qemu-img convert -c -O qcow2 a.raw a.qcow2 || die "qemu-img"
ok "a compressed qcow2 to raw" convert a.qcow2 fromq.raw
same a.raw fromq.raw "byte for byte"
ok "an overlay on qcow2" create -b a.qcow2 topq.vmo
ok "reads as its base" convert topq.vmo topq.raw
same a.raw topq.raw "byte for byte"
