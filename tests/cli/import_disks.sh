#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Increments of a collection that has got more disks and VMs since, onto one whose VM has got a disk of its
# own (spec/stream.md IP-4, MF-4).
. "$(dirname "$0")/common.bash"
export VMIMG_STORE=$dir/a

ok "a store" init a
ok "a VM" vm create web
ok "a disk" disk create web/root --size=8M
ok "a collection" collection create prod web
fill web/root 0 1000000
ok "a snapshot" snapshot create prod@s1 --type=recovery
ok "in full" snapshot export prod@s1 full
ok "another disk of the VM" disk create web/extra --size=4M
ok "another VM" vm create db
ok "with a disk" disk create db/x --size=2M
ok "in the collection, too" collection add prod db
fill web/root 50000 1000000
fill web/extra 0 1000000
fill db/x 0 1000000
ok "a snapshot of all of them" snapshot create prod@s2 --type=recovery
ok "an increment" snapshot export prod@s2 inc --base=s1
ok "as qcow2" snapshot export prod@s2 qinc --base=s1 --format=qcow2
ok "one more disk" disk create web/zextra --size=1M
ok "a third snapshot" snapshot create prod@s3 --type=recovery
ok "its increment" snapshot export prod@s3 inc3 --base=s2

for kind in inc qinc; do
	export VMIMG_STORE=$dir/$kind-store
	ok "an empty store" init "$VMIMG_STORE"
	ok "the full one" snapshot import full
	ok "the VM gets a disk of its own here" disk create web/own --size=1M
	ok "the increment" snapshot import $kind
	ok "and the next" snapshot import inc3
	for d in web/root web/extra db/x web/zextra; do
		is "$(sum $kind-store prod@s3/$d)" "$(sum a prod@s3/$d)" "$d came back"
		is "$(sum $kind-store $d)" "$(sum a prod@s3/$d)" "and is there to be used"
	done
	ok "a snapshot with the disk of its own" snapshot create prod@s4 --type=recovery
	ok "goes on" snapshot export prod@s4 again-$kind
	ok "and is as good as any" snapshot verify ./again-$kind
	ok "the store is sound" check "$VMIMG_STORE"
done
echo "all well"
