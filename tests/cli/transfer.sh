# SPDX-License-Identifier: MIT
# Exports and imports: what comes back is what was there, bit by bit; everything else is refused and leaves
# nothing (spec/stream.md).
. "$(dirname "$0")/common.bash"
export VMIMG_STORE=$dir/a

ok "a store" init a
ok "a VM" vm create web
ok "a disk" disk create web/root --size=24M
ok "a disk that ends inside of a block" disk create web/odd --size=1049088
ok "a collection" collection create prod web
fill web/root 1M 5000000
fill web/root 20000000 70000
fill web/odd 0 1049088
ok "a snapshot" snapshot create prod@s1 --type=recovery
fill web/root 3000000 100000
"$VMIMG" disk write web/root 1048576 < <(head -c 1048576 /dev/zero) || die "zeros"
ok "another" snapshot create prod@s2 --type=recovery
fill web/odd 512 512
ok "a third" snapshot create prod@s3 --type=recovery

# --- files
ok "raw files" snapshot export prod@s2 raw --format=raw
ok "qcow2 files" snapshot export prod@s2 qcow2 --format=qcow2 -c --output=json
has disks 2 "the report counts disks"
for d in root odd; do
	"$VMIMG" disk read prod@s2/web/$d >content || die "read"
	same content raw/web/$d.raw "raw $d is the snapshot's"
	qemu-img check -q qcow2/web/$d.qcow2 || die "qemu-img check of $d"
	qemu-img compare -q raw/web/$d.raw qcow2/web/$d.qcow2 || die "qemu-img compare of $d"
done
[ "$(du -k raw/web/root.raw | cut -f 1)" -lt 8000 ] || die "holes stay holes"
ok "an increment as qcow2" snapshot export prod@s2 qinc --base=s1 --format=qcow2
ok "and its base" snapshot export prod@s1 qbase --format=qcow2
cp qbase/web/root.qcow2 qinc/web/root.base.qcow2
qemu-img compare -q raw/web/root.raw qinc/web/root.qcow2 || die "qcow2 increment over its base"
fails 1 "raw" "an increment as raw is refused" snapshot export prod@s2 no --base=s1 --format=raw
fails 1 "there already" "a directory that is there is refused" snapshot export prod@s2 raw
fails 1 "there is none" "no such base" snapshot export prod@s2 no --base=nope
fails 1 "there is none" "no such snapshot" snapshot export prod@nope no
[ ! -e no ] && [ ! -e no.part ] || die "a refused export leaves something"

# --- streams
ok "a full stream" snapshot export prod@s1 full
ok "an increment" snapshot export prod@s2 inc2 --base=prod@s1
ok "another, compressed" snapshot export prod@s3 inc3 --base=s2 -c
"$VMIMG" snapshot export prod@s3 - >piped 2>err || die "a stream to a pipe"
"$VMIMG" snapshot export prod@s3 - 2>err | cat >piped2 || die "a stream to a pipe"
[ "$(stat -c %s piped)" = "$(stat -c %s piped2)" ] || die "both ways to standard output"

export VMIMG_STORE=$dir/b
ok "an empty store" init b
fails 1 "not here" "an increment without its base is refused" snapshot import inc2
ok "the full one" snapshot import full
ok "the first increment" snapshot import inc2/s2.vmstream --output=json
has increment true "the report says so"
"$VMIMG" snapshot import - <inc3/s3.vmstream >out 2>err || die "an increment by standard input"
for s in s1 s2 s3; do
	for d in root odd; do
		is "$(sum b prod@$s/web/$d)" "$(sum a prod@$s/web/$d)" "prod@$s/web/$d came back"
	done
done
is "$(sum b web/root)" "$(sum a web/root)" "and the disk is as the last one"
ok "the store is sound" check b
fails 1 "already" "an increment that is there is refused" snapshot import inc3
fails 1 "there is one already" "a full one whose names are taken is refused" snapshot import full
ok "under another name it goes" snapshot import full --collection=copy
is "$(sum b copy@s1/copy-web/root)" "$(sum a prod@s1/web/root)" "with its content"
ok "the restored disk is written to" disk write web/root 0
head -c 512 /dev/urandom | "$VMIMG" disk write web/root 0 || die "write"

export VMIMG_STORE=$dir/c
ok "one more store" init c
cat full/s1.vmstream | "$VMIMG" snapshot import - >out 2>err || die "a full one by a pipe"
head -c 512 /dev/urandom | "$VMIMG" disk write web/root 0 || die "write"
fails 1 "writes in its head" "a head that was written to is refused" snapshot import inc2
fails 1 "not here|base" "an increment on the wrong base is refused" snapshot import inc3
ok "nothing of it is left" check c
is "$("$VMIMG" snapshot list --output=json | grep -c snapshot_id)" 1 "no snapshot came of it"

# --- standard streams that are closed are no files of the store
"$VMIMG" -s "$dir/a" snapshot export prod@s1 - >&- 2>err && die "a closed standard output was written to"
"$VMIMG" -s "$dir/a" disk read web/root >&- 2>err && die "the same by disk read"
grep -q "standard output" err || die "it does not say so"
"$VMIMG" -s "$dir/a" snapshot import - <&- >out 2>err && die "something came from a closed standard input"
"$VMIMG" -s "$dir/a" disk list >&- 2>&- <&- && die "a list was printed to nobody"
is "$(stat -c %s a/lock)" 0 "what was to be written is nowhere"
ok "the store is sound" check "$dir/a"

# --- merge: a synthetic full
export VMIMG_STORE=$dir/d
ok "a store for synthetic fulls" init d
ok "the full one" snapshot import full
ok "an increment that is merged" snapshot import inc2 --merge --output=json
has merged true "the base goes"
fails 1 "there is none" "it is gone" snapshot show prod@s1
is "$(sum d prod@s2/web/root)" "$(sum a prod@s2/web/root)" "the rest is whole"

# --- damage: every region of the stream, and every way to end too early
export VMIMG_STORE=$dir/e
ok "a store that stays empty" init e
size=$(stat -c %s inc3/s3.vmstream)
full=$(stat -c %s full/s1.vmstream)
for at in 0 9 13 20 30 41 57 64 70 300 1000 1500 5000 100000 $((full / 2)) $((full - 60)) $((full - 8)); do
	cp full/s1.vmstream bad
	printf '\xa5' | dd of=bad bs=1 seek="$at" conv=notrunc status=none
	cmp -s bad full/s1.vmstream && continue
	fails 1 "bad|stream|manifest" "a byte at $at is another" snapshot import "$dir/bad"
done
for at in 0 10 63 64 500 2000 100000 $((full - 1)) $((full - 40)) $((full - 88)); do
	head -c "$at" full/s1.vmstream >bad
	fails 1 "truncated" "it ends at $at" snapshot import "$dir/bad"
done
(cat full/s1.vmstream; echo more) >bad
fails 1 "follows END" "something follows it" snapshot import "$dir/bad"
fails 1 "no vmimg stream|truncated" "no stream at all" snapshot import "$dir/content"
is "$("$VMIMG" vm list --output=json | grep -c name)" 0 "nothing came of any of them"
is "$(ls e/layers | wc -l)" 0 "and no file is left"
[ "$size" -gt 0 ] || die "the increment is empty"

# --- verification
ok "a stream is verified without a store" snapshot verify inc3 --output=json
has sound true "and is sound"
"$VMIMG" snapshot verify - <full/s1.vmstream >out 2>err || die "a stream on standard input"
head -c 50000 full/s1.vmstream >bad
fails 1 "truncated" "a stream that ends early" snapshot verify ./bad
cp full/s1.vmstream bad
printf '\xa5\x5a' | dd of=bad bs=1 seek=60000 conv=notrunc status=none
fails 1 "does not match its checksum" "a stream with another byte" snapshot verify ./bad
export VMIMG_STORE=$dir/b
ok "a snapshot is verified in all its layers" snapshot verify prod@s3 --output=json
has sound true "and is sound"
has layers 6 "all layers of both disks"
has unverified_bytes 0 "what was imported has checksums"
for layer in $(find b/layers -name '*.vmo' -size +3M); do # the original's and the copy's
	printf '\xa5\x5a' | dd of="$layer" bs=1 seek=$((0x10000 + 5 * 4096 + 17)) conv=notrunc status=none
done
fails 1 "offset [0-9]+: the data" "a block that has changed" snapshot verify prod@s3 --output=json
has damaged 1 "one is counted"
grep -q '"offset":' out || die "the report does not say where"
fails 1 "cannot read|checksum" "an export of it is refused, and says where" snapshot export prod@s1 no
[ ! -e no ] && [ ! -e no.part ] || die "a failed export leaves something"
export VMIMG_STORE=$dir/a
ok "a base without checksums is read" snapshot verify prod@s1
grep -q "have no checksums" out || die "it is not called unverified"

# --- going on
export VMIMG_STORE=$dir/a
mkdir full2.part
head -c 3000000 full/s1.vmstream >full2.part/s1.vmstream
ok "an interrupted export goes on" snapshot export prod@s1 full2 --resume
same full/s1.vmstream full2/s1.vmstream "and is the same stream"
mkdir full3.part
(head -c 2000000 full/s1.vmstream; head -c 2000000 /dev/urandom) >full3.part/s1.vmstream
ok "behind damage too" snapshot export prod@s1 full3 --resume
same full/s1.vmstream full3/s1.vmstream "and is the same stream"
mkdir full4.part
head -c 3000000 full/s1.vmstream >full4.part/s1.vmstream
fails 1 "not this export's" "another snapshot's is not gone on with" snapshot export prod@s2 full4 --resume
mkdir full7.part
head -c 50000 inc2/s2.vmstream >full7.part/s2.vmstream
ok "an increment is not gone on with in full" snapshot export prod@s2 full7 --resume
ok "the full one is whole" snapshot verify full7 --output=json
[ "$(stat -c %s full7/s2.vmstream)" -gt 4000000 ] || die "it is no full one"
mkdir full8.part full9.part
head -c 3000000 full/s1.vmstream >full8.part/s1.vmstream
ok "what was not compressed is not gone on with compressed" snapshot export prod@s1 full8 --resume -c
ok "the compressed one is whole" snapshot verify full8
head -c 2000000 full8/s1.vmstream >full9.part/s1.vmstream
ok "nor the other way" snapshot export prod@s1 full9 --resume
ok "the other one is whole" snapshot verify full9
mkdir full10.part
head -c 2000000 full8/s1.vmstream >full10.part/s1.vmstream
ok "a compressed one goes on compressed" snapshot export prod@s1 full10 --resume -c
cmp -n 2000000 full8/s1.vmstream full10/s1.vmstream || die "it was begun anew"
ok "and is whole" snapshot verify full10
mkdir full5.part full6.part
echo mine >full5.part/else
fails 1 "not this export's" "what is not ours gets no name" snapshot export prod@s1 full5
[ -s full5.part/else ] || die "and is not removed"
: >full6.part/.lock
flock full6.part/.lock "$VMIMG" snapshot export prod@s1 full6 >out 2>err && die "made by two at once"
grep -q "another export" err || die "it does not say why"
ok "one after the other" snapshot export prod@s1 full6
is "$(ls -A full6)" s1.vmstream "nothing else is in it"
ok "the manifest alone" snapshot export prod@s1 config --no-storage
[ -s config/manifest.json ] && [ "$(ls config | wc -l)" = 1 ] || die "more than a manifest"

# --- a disk that was made smaller between two snapshots (RZ-2) ---
export VMIMG_STORE=$dir/shrunk
v init "$VMIMG_STORE" && v vm create vm && v disk create vm/d --size=4M || die "store"
v collection create cut vm || die "collection"
noise content 4194304
"$VMIMG" disk write vm/d 0 <content || die "write"
v snapshot create cut@whole && v disk resize vm/d 1M --shrink || die "shrink"
v snapshot create cut@short || die "snapshot"
ok "a full stream" snapshot export cut@whole cut-whole
ok "an increment of less" snapshot export cut@short cut-short --base=cut@whole
export VMIMG_STORE=$dir/shrunk2
v init "$VMIMG_STORE" || die "store"
ok "the full one" snapshot import cut-whole
ok "the increment" snapshot import cut-short
head -c 1M content >expected
"$VMIMG" disk read vm/d >back
same expected back "the disk is as short as it was"
ok "it grows" disk resize vm/d 4M
head -c 3M /dev/zero >>expected
"$VMIMG" disk read vm/d >back
same expected back "and what it had given up does not show again"
"$VMIMG" disk read cut@whole/vm/d >back
same content back "but in the snapshot"
ok "the store is sound" check "$VMIMG_STORE"
echo "all well"
