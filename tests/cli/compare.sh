#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# compare: 0 the same, 1 different, 2 could not tell; across formats, sizes and holes.
. "$(dirname "$0")/common.bash"

differ() { # CLAIM ARG...: they do, and nothing else is wrong
	local claim=$1
	shift
	echo "- $claim"
	v compare "$@"
	[ $? = 1 ] || die "$claim"
	[ ! -s err ] || die "$claim: an error"
}

noise a.raw 5M
cp a.raw b.raw
ok "raw to qcow2" convert -c -O qcow2 a.raw a.qcow2
ok "raw to vmo" convert -O vmo a.raw a.vmo
for other in b.raw a.qcow2 a.vmo; do
	ok "the same as $other" compare a.raw $other
	grep -q 'hold the same\.' out || die "without a word"
done
ok "formats may be given" compare -f raw -F qcow2 a.raw a.qcow2 --output=json
has same true "JSON says so"
has first_difference null "and that no byte differs"
has size_a 5242880 "and the sizes"
differ "taken as raw they differ" -F raw a.raw a.qcow2

printf x | dd of=b.raw bs=1 seek=4000001 conv=notrunc status=none
cmp -s a.raw b.raw && { printf y | dd of=b.raw bs=1 seek=4000001 conv=notrunc status=none; }
differ "one byte is a difference" a.qcow2 b.raw
grep -q 'first at offset 4000001' out || die "and its offset is told"
differ "in JSON" a.qcow2 b.raw --output=json
has same false "too"
has first_difference 4000001 "with its offset"

cp a.raw long.raw
truncate -s 7M long.raw
ok "zeros at the end are nothing" compare long.raw a.raw
grep -q 'but for zeros at the end' out || die "which is told"
grep -q '7340032 and 5242880' out || die "with the sizes"
ok "the other way round" compare a.vmo long.raw
differ "strictly they are" --strict long.raw a.raw
grep -q 'sizes differ' out || die "which is told"
printf x | dd of=long.raw bs=1 seek=7340031 conv=notrunc status=none
differ "the last byte counts" a.raw long.raw
grep -q 'offset 7340031' out || die "with its offset"

truncate -s 1T huge.raw
truncate -s 2T huger.raw
ok "holes are passed over" compare huge.raw huger.raw
ok "an overlay" create -b a.raw top.vmo
ok "is its base, until it is written" compare top.vmo a.qcow2

fails 2 "nothing.raw" "what is not there is no difference" compare a.raw nothing.raw
fails 2 '"ENOENT"' "in JSON, with its number" compare a.raw nothing.raw --output=json
fails 2 "unexpected argument" "nor is bad usage" compare a b c
fails 2 "missing argument" "nor one image" compare a
head -c 70000 a.qcow2 >cut.qcow2
fails 2 "cut.qcow2" "nor a damaged one" compare a.raw cut.qcow2
exec 9>progress
ok "progress on a descriptor" --progress=9 compare a.raw a.qcow2 --rate-limit=20M/s
exec 9>&-
tail -n 1 progress | grep -q '"operation": "compare", .*"percent_complete": 100}' || die "no progress"
