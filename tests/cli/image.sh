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
fails 1 "writing qcow2 is not supported" "qcow2 is not written" convert -O qcow2 a.raw b.qcow2
fails 1 "writing qcow2 is not supported" "nor compressed" convert -c -O qcow2 a.raw b.qcow2
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

command -v qemu-img >/dev/null || { echo "no qemu-img: qcow2 is not checked"; exit 0; }
qemu-img convert -c -O qcow2 a.raw a.qcow2 || die "qemu-img"
ok "a compressed qcow2 to raw" convert a.qcow2 fromq.raw
same a.raw fromq.raw "byte for byte"
ok "an overlay on qcow2" create -b a.qcow2 topq.vmo
ok "reads as its base" convert topq.vmo topq.raw
same a.raw topq.raw "byte for byte"
