#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Exports as raw and qcow2 come back as what they were, full and as increments; files that were changed,
# and directories that mean harm, are refused and leave nothing (spec/stream.md IP-7, MF-5).
. "$(dirname "$0")/common.bash"
export VMIMG_STORE=$dir/a
disks="web/root web/odd db/empty db/inplace"

ok "a store" init a
ok "a VM" vm create web
ok "another" vm create db
ok "a disk" disk create web/root --size=24M
ok "a disk that ends inside of a block" disk create web/odd --size=1049088
ok "a disk that stays empty" disk create db/empty --size=10M
noise file.raw 3000320
ok "a disk on a file in place" disk create db/inplace --from=file.raw --format=raw --in-place
ok "a collection" collection create prod web db
fill web/root 1000000 5000000
fill web/odd 0 1049088
ok "a snapshot" snapshot create prod@s1 --type=recovery
fill web/root 3000000 300000
"$VMIMG" disk write web/root 1048576 < <(head -c 1048576 /dev/zero) || die "zeros"
fill db/empty 777777 5000
ok "another" snapshot create prod@s2 --type=recovery
ok "raw files" snapshot export prod@s1 raw --format=raw
ok "qcow2 files" snapshot export prod@s1 qcow2 --format=qcow2
ok "compressed" snapshot export prod@s1 packed --format=qcow2 -c
ok "an increment as qcow2" snapshot export prod@s2 qinc --format=qcow2 --base=s1
ok "compressed" snapshot export prod@s2 pinc --format=qcow2 -c --base=s1
ok "and as a stream" snapshot export prod@s2 sinc --base=s1
ok "a manifest alone" snapshot export prod@s1 alone --format=raw --no-storage

restores() { # FULL INCREMENT
	export VMIMG_STORE=$dir/from-$1
	ok "a store for $1" init "$VMIMG_STORE"
	ok "$1 comes back" snapshot import "$1" --output=json
	has snapshot prod@s1 "as what it was"
	ok "$2 goes onto it" snapshot import "$2" --output=json
	has increment true "as an increment"
	for s in s1 s2; do
		for d in $disks; do
			is "$(sum "from-$1" prod@$s/$d)" "$(sum a prod@$s/$d)" "prod@$s/$d came back"
		done
	done
	ok "all of it has checksums" snapshot verify prod@s2 --output=json
	has unverified_bytes 0 "all of it"
	ok "the store is sound" check "$VMIMG_STORE"
	fails 1 "already" "it does not come twice" snapshot import "$1"
}
restores raw sinc
restores qcow2 qinc
restores packed pinc

export VMIMG_STORE=$dir/e
ok "a store that stays empty" init e

refused() { # PATTERN CLAIM [IMAGES]
	fails 1 "$1" "$2" snapshot import "${3:-bad}"
	is "$(ls e/layers | wc -l)" 0 "and no file is left"
	rm -rf bad
}
like() { # FORMAT
	cp -a "$1" bad
}
refused "without data" "a manifest alone" alone
refused "is not here" "an increment without its base" qinc
like raw
printf x | dd of=bad/web/root.raw bs=1 seek=2000000 conv=notrunc status=none
refused "not what was exported" "a byte that is another"
like raw
truncate -s +512 bad/web/odd.raw
refused "1049600 bytes, expected 1049088" "another size"
like raw
rm bad/db/empty.raw
refused "No such file" "a file that is not there"
like raw
ln -sf /etc/passwd bad/db/empty.raw
refused "symbolic link" "a link instead of a file"
like raw
mv bad/db bad/elsewhere
ln -s elsewhere bad/db
refused "symbolic link" "a link instead of a directory"
like raw
rm bad/db/empty.raw
mkfifo bad/db/empty.raw
refused "not a regular file" "a pipe instead of a file"
like raw
sed -i 's/"name":"root"/"name":"..\/..\/etc"/' bad/manifest.json
refused "name is missing or wrong" "a name that is a path"
like raw
rm bad/manifest.json
mkfifo bad/manifest.json
refused "no manifest" "a pipe instead of the manifest"
like raw
truncate -s 20M bad/manifest.json
refused "no manifest" "a manifest without end"
like raw
sed -i 's/"content":"[0-9a-f]*"/"content":"12"/' bad/manifest.json
refused "32 hexadecimal digits" "a content that is none"
like qcow2
qemu-img create -q -f qcow2 -F raw -b "$dir/file.raw" bad/web/root.qcow2 24M
refused "names the backing file" "a backing file in a full export"
like qcow2
qemu-img create -q -f qcow2 -o data_file=bad/data bad/web/root.qcow2 24M
refused "external data file" "a data file elsewhere"
like qcow2
qemu-img resize -q bad/web/root.qcow2 30M
refused "31457280 bytes, expected 25165824" "another size"
like qcow2
qemu-io -c "write 0 4k" bad/web/root.qcow2 >/dev/null
refused "not what was exported" "a guest that ran on it"
like qcow2
truncate -s 100000 bad/web/root.qcow2
refused "truncated" "a file that was cut off"
mkdir bad
refused "or manifest.json" "an empty directory"

export VMIMG_STORE=$dir/w
ok "a store for increments" init w
ok "the full one" snapshot import raw
layers=$(ls w/layers | wc -l)
increment() { # PATTERN CLAIM
	fails 1 "$1" "$2" snapshot import bad
	is "$(ls w/layers | wc -l)" "$layers" "and no file is left"
	rm -rf bad
}
cp -a qinc bad
qemu-img create -q -f qcow2 -o cluster_size=2048 bad/web/root.qcow2 24M
qemu-io -c "write -P 7 2k 2k" bad/web/root.qcow2 >/dev/null
increment "inside of a block" "clusters smaller than the disk's blocks"
cp -a qinc bad
cp raw/web/root.raw bad/web/root.raw
sed -i 's/"format":"qcow2"/"format":"raw"/' bad/manifest.json
increment "as in the base" "raw files cannot be an increment"
cp -a qinc bad
qemu-io -c "write -P 7 5M 4k" bad/web/root.qcow2 >/dev/null 2>&1 ||
	{ qemu-img rebase -q -u -b "" bad/web/root.qcow2 && qemu-io -c "write -P 7 5M 4k" bad/web/root.qcow2 >/dev/null; }
increment "not what was exported" "an increment that was changed"
ok "as it was, it goes" snapshot import qinc
ok "under another name, beside it" snapshot import qcow2 --collection=copy
is "$(sum w copy@s1/copy-web/root)" "$(sum a prod@s1/web/root)" "with its content"
ok "the store is sound" check w
echo "all good"
