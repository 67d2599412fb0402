#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# snapshot create, list, show: content, output, and every answer of CreateSnapshot that can be reached.
. "$(dirname "$0")/common.bash"

init
for vm in web db; do
	v vm create $vm || die "vm"
	for disk in root data; do
		v disk create $vm/$disk --size=4M || die "disk"
		noise $vm-$disk 4M
		"$VMIMG" disk write $vm/$disk <$vm-$disk || die "write"
	done
done
v collection create prod web db || die "collection"

ok "a snapshot" snapshot create prod@s1 --output=json
has snapshot prod@s1 "has its name"
has type 1 "its type"
has return_value 0 "returned 0"
has disks 4 "holds all disks"
has state 7 "its job completed"
has percent_complete 100 "wholly"
has error_code 0 "without error"
for key in snapshot_id id cut_ns prepare_ns harden_ns total_ns max_write_latency_ns; do
	[ -n "$(get $key)" ] || die "no $key"
done
[ "$(get total_ns)" -ge "$(get prepare_ns)" ] || die "the total is less than a part"
for vm in web db; do
	for disk in root data; do
		noise $vm-$disk-2 4M
		"$VMIMG" disk write $vm/$disk <$vm-$disk-2 || die "write"
	done
done
ok "another one" snapshot create prod@s2 --type=recovery
grep -qE '^prod@s2: 4 disks, recovery' out && grep -qE '^cut ' out && grep -qE '^total ' out ||
	die "no times for humans"
for vm in web db; do
	for disk in root data; do
		head -c 1M /dev/zero | "$VMIMG" disk write $vm/$disk 1M || die "write"
		"$VMIMG" disk read prod@s1/$vm/$disk >back
		same $vm-$disk back "prod@s1 has $vm/$disk as it was"
		"$VMIMG" disk read prod@s2/$vm/$disk >back
		same $vm-$disk-2 back "prod@s2 as it was later"
	done
done
fails 1 "" "a snapshot is not written" disk write prod@s1/web/root
ok "a snapshot gets a name" snapshot create prod --output=json
get snapshot | grep -qE '^prod@s-[0-9]{8}-[0-9]{6}' || die "not from the time: $(get snapshot)"

fails 1 '"code": 4' "4: a name that is taken" snapshot create prod@s1 --output=json
fails 1 '"code": 4' "4: a malformed name" snapshot create prod@.x --output=json
fails 1 '"code": 4' "4: an empty name" snapshot create prod@ --output=json
fails 1 '"code": 4' "4: no such collection" snapshot create nobody@s --output=json
fails 1 '"code": 4' "4: settings that are no JSON" snapshot create prod --settings=x --output=json
fails 1 '"code": 4.*Bogus' "4: an unknown setting, named" snapshot create prod \
	'--settings={"Bogus": 1}' --output=json
fails 1 '"code": 6' "6: type 0" snapshot create prod --type=0 --output=json
fails 1 '"code": 6' "6: type 3" snapshot create prod --type=3 --output=json
fails 1 '"code": 1' "1: a vendor's type" snapshot create prod --type=32768 --output=json
fails 1 '"code": 1[,}]' "1: application consistency" snapshot create prod --consistency=application \
	--output=json
v vm create agent --guest-agent="$dir/ga.sock" || die "vm"
v disk create agent/root --size=1M || die "disk"
v collection create quiet agent || die "collection"
fails 1 '"code": 2[,}]' "2: an agent that is not there" snapshot create quiet \
	--consistency=application --output=json
grep -q 'VM agent' err || die "which guest it was is not told"
ok "which may fall back" snapshot create quiet@s1 --consistency=application \
	'--settings={"FallbackToCrash": true}' --output=json
has consistency 2 "to crash consistency, and says so"
grep -q '"frozen": false' out || die "the guest is not listed"
ok "in words too" snapshot create quiet@s2 --consistency=application \
	'--settings={"FallbackToCrash": true}'
grep -q 'agent: not frozen: ' out || die "the guest is not named"
v collection create empty || die "collection"
fails 1 '"code": 5' "5: an empty collection" snapshot create empty --output=json
v disk create web/swap --size=1M --independent || die "disk"
fails 1 '"code": 5' "5: a disk that takes no part" snapshot create prod --output=json
ok "unless it is ignored" snapshot create prod@s3 --output=json \
	'--settings={"IgnoreNonSnapshottableDisks": true, "ConsistencyLevel": 2}' --consistency=crash
has disks 4 "then the others are in"
has skipped 1 "and it is counted"
fails 2 "contradicts" "options and settings must agree" snapshot create prod --consistency=crash \
	'--settings={"ConsistencyLevel": 1}'
fails 2 "contradicts" "also about waiting" snapshot create prod '--settings={"Synchronous": false}'
ok "a bound on the stall" snapshot create prod@s4 --max-stall=1000 \
	'--settings={"IgnoreNonSnapshottableDisks": true}'
ok "dry run" snapshot create prod@s5 --dry-run '--settings={"IgnoreNonSnapshottableDisks": true}'
fails 1 "s5" "makes nothing" snapshot show prod@s5
fails 1 '"code": 5' "and tells the answer" snapshot create prod@s5 --dry-run --output=json

ok "list" snapshot list --output=json
is "$(grep -c '"snapshot"' out)" 7 "all"
ok "list of a collection" snapshot list prod
grep -qE '^prod@s2 +recovery +crash +4 ' out || die "no table"
ok "show" snapshot show prod@s1 --output=json
has snapshot prod@s1 "that one"
is "$(grep -c '"layer"' out)" 4 "with its members"
fails 1 '"ENOENT"' "not one that is not there" snapshot show prod@none --output=json
fails 1 '"EBUSY"' "a disk that a snapshot holds stays" disk delete web/root --output=json
fails 1 '"code": 32775' "a collection with snapshots stays" collection delete prod --output=json
ok "a renamed collection" collection rename prod live
ok "renames its snapshots" snapshot show live@s1
"$VMIMG" disk read live@s2/db/data >back
same db-data-2 back "which are read by the new name"
sound "the store is sound"

# --- delete: any, in any order ---
ok "the list" snapshot list live --output=json
before=$(grep -c '"snapshot":' out)
ok "a snapshot is deleted" snapshot delete live@s1 --output=json
has return_value 0 "and that is all"
job=$(get job)
ok "its job can be read" job show "$job" --output=json
has job_type 72 "is a deletion"
has job_state 7 "has completed"
fails 1 '"code": 4' "it is gone" snapshot delete live@s1 --output=json
fails 1 "no such snapshot|there is none" "for readers too" disk read live@s1/web/root 0 1
fails 1 '"code": 4' "4: no name" snapshot delete live --output=json
ok "the others" snapshot list live --output=json
is "$(grep -c '"snapshot":' out)" $((before - 1)) "are still there"
"$VMIMG" disk read live@s2/web/root >back
same web-root-2 back "with what they hold"
ok "its name can be taken" snapshot create live@s1 '--settings={"IgnoreNonSnapshottableDisks": true}'
sound "and the store is sound"
