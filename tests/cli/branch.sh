#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# snapshot revert: a collection goes back and forth, and what the command says of it.
. "$(dirname "$0")/common.bash"

init
for vm in web db; do
	v vm create $vm || die "vm"
	v disk create $vm/root --size=4M || die "disk"
	noise $vm-1 4M
	"$VMIMG" disk write $vm/root <$vm-1 || die "write"
done
v collection create prod web db || die "collection"
v snapshot create prod@s1 || die "snapshot"
for vm in web db; do
	noise $vm-2 4M
	"$VMIMG" disk write $vm/root <$vm-2 || die "write"
done
v disk create db/new --size=1M || die "disk"

content() { # CLAIM SUFFIX: both disks hold what was written then
	for vm in web db; do
		"$VMIMG" disk read $vm/root >back || die "read"
		same $vm-$2 back "$1: $vm"
	done
}

# --- revert ---
fails 1 '"code": 4' "4: no such snapshot" snapshot revert prod@none --output=json
fails 1 '"code": 4' "4: no name" snapshot revert prod --output=json
fails 1 '"code": 4' "4: no name to keep it by" snapshot revert prod@s1 --keep-as=-x --output=json
fails 2 "exclude" "a contradiction" snapshot revert prod@s1 --keep-as=x --no-keep
content "nothing has changed" 2
ok "a revert" snapshot revert prod@s1 --output=json
has snapshot prod@s1 "to the snapshot"
has disks 2 "of its disks"
has return_value 0 "is done"
has state 7 "with its job"
kept=$(get kept)
grep -q '"db/new"' out || die "the disk that the snapshot does not hold is not named"
job=$(get id)
ok "the job" job show "$job" --output=json
has job_type 71 "is an apply"
ok "the kept state" snapshot show "$kept" --output=json
has automatic true "is marked"
ok "in the list" snapshot list prod
grep -qE "^$kept .* yes +- " out || die "no mark in the list"
ok "the jobs tell what they are" job list
grep -qE '^[0-9a-f-]+ +revert \(71\) +prod@s1 +completed \(7\) ' out || die "no revert in the list of jobs"
content "the disks are back" 1
"$VMIMG" disk read "$kept/web/root" >back
same web-2 back "the kept one holds what was left"
sound "the store is sound"
ok "undone" snapshot revert "$kept" --keep-as=undone
content "by a revert to what was kept" 2
ok "what that left" snapshot show prod@undone --output=json
has automatic true "was kept by its name"
fails 1 '"code": 4' "a name that is taken" snapshot revert prod@s1 --keep-as=undone --output=json
v snapshot list prod --output=json
before=$(grep -c '"snapshot":' out)
ok "without keeping" snapshot revert prod@undone --no-keep --output=json
has kept null "nothing is kept"
v snapshot list prod --output=json
is "$(grep -c '"snapshot":' out)" "$before" "no snapshot more"
content "and it is the old state" 1
sound "the store is sound"
ok "kept states can be deleted" snapshot delete "$kept"
ok "as any snapshot" snapshot delete prod@undone
content "the disks stay" 1
sound "and nothing is leaked"

# --- clone ---
fails 1 '"code": 4' "4: a name that is taken" snapshot clone prod@s1 prod --output=json
fails 1 '"code": 4' "4: no such snapshot" snapshot clone prod@none test --output=json
noise new 4M
"$VMIMG" disk write web/root <new || die "write"
ok "a clone" snapshot clone prod@s1 test --output=json
has collection test "is a collection"
has vms 2 "of new VMs"
has disks 2 "and disks"
has state 7 "its job is done"
"$VMIMG" disk read test-web/root >back
same web-1 back "that hold the snapshot"
noise own 4M
"$VMIMG" disk write test-web/root <own || die "write"
"$VMIMG" disk read test-web/root >back
same own back "and are written"
"$VMIMG" disk read web/root >back
same new back "the origin is as it was"
ok "the clone" disk show test-web/root --output=json
grep -A1 '"origin"' out | grep -q '"web/root"' || die "the clone's document does not name its origin"
ok "the origin" disk show web/root --output=json
grep -A1 '"clones"' out | grep -q '"test-web/root"' || die "the origin's document does not name its clone"
ok "the snapshot goes" snapshot delete prod@s1 --output=json
grep -A12 '"kept"' out | grep -q '"test-db/root"' || die "what stays for the clone is not told"
fails 1 "test-web/root" "the origin stays while a clone stands on it" disk delete web/root
sound "the store is sound"
"$VMIMG" disk read test-db/root >back
same db-1 back "the clone reads what the snapshot held"
ok "a snapshot of the clone" snapshot create test@own
ok "a revert of it" snapshot revert test@own
ok "the picture" tree
grep -q "of web/root" out || die "the tree does not tell whose layers they are"
v snapshot list test --output=json
for s in $(sed -n 's/^ *"snapshot": "\(.*\)",$/\1/p' out); do
	v snapshot delete "$s" || die "delete $s"
done
for vm in test-web test-db; do
	v disk delete $vm/root || die "delete $vm/root"
done
"$VMIMG" disk read web/root >back
same new back "without clones the origin is as it was"
sound "and nothing is leaked"

# --- flatten ---
v snapshot create prod@f1 '--settings={"IgnoreNonSnapshottableDisks": true}' || die "snapshot"
v snapshot clone prod@f1 flat || die "clone"
fails 1 '"code": 4' "4: no such disk" disk flatten flat-web/none --output=json
ok "a flatten" disk flatten flat-web/root --output=json
has return_value 0 "is a job"
has state 7 "that completes"
job=$(get id)
ok "its job" job show "$job" --output=json
has job_type 304 "has a type of its own"
ok "the disk" disk show flat-web/root --output=json
has origin null "stands on no other's"
"$VMIMG" disk read flat-web/root >back
same new back "and holds what it held"
ok "a whole collection" disk flatten flat --rate-limit=1G
"$VMIMG" disk read flat-db/root >back
same db-1 back "too"
v snapshot delete prod@f1 || die "delete"
ok "the origin can go" disk delete web/root
"$VMIMG" disk read flat-web/root >back
same new back "and the clone stays"
sound "and nothing is leaked"
