#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# VMs, disks and collections: made, listed, changed, deleted; and what is refused.
. "$(dirname "$0")/common.bash"

ok "a store" init "$VMIMG_STORE"
fails 1 "" "is not made twice" init "$VMIMG_STORE"
! served || serve
fails 1 "nowhere" "a store that is not there" -s nowhere vm list
ok "a VM" vm create web
fails 1 "web" "is not made twice" vm create web
fails 1 "" "a name begins with a letter or digit" vm create .web
fails 1 '"EINVAL"' "that is EINVAL" vm create .web --output=json
fails 1 "" "a name has no slash" vm create a/b
fails 1 "" "a name has 64 bytes at most" vm create "$(printf 'x%.0s' {1..65})"
ok "64 will do" vm create "$(printf 'x%.0s' {1..64})"
ok "a disk" disk create web/root --size=8M --output=json
has disk web/root "named VM/DISK"
has size 8388608 "of that size"
has independent false "part of snapshots"
ok "an independent one" disk create web/swap --size=1M --independent --output=json
has independent true "says so"
fails 1 "" "a disk is not made twice" disk create web/root --size=8M
fails 1 '"ENOENT"' "a disk needs its VM" disk create nobody/root --size=8M --output=json
fails 1 "" "a size is a multiple of 512" disk create web/odd --size=1000
fails 2 "--size, .*or --from" "a disk needs a size or a file" disk create web/none
ok "a larger block size" disk create web/big --size=4M --block-size=64K --output=json
has block_size 65536 "is kept"
fails 2 "power of two" "a block size is a power of two" disk create web/x --size=4M --block-size=12K
ok "the VM" vm show web --output=json
grep -q '"swap"' out || die "the VM's disks are not listed"
ok "the disks" disk list --output=json
is "$(grep -c '"disk"' out)" 3 "are three"
ok "those of a VM" disk list web
grep -qE '^web/root +8 MiB' out || die "no table"
ok "a disk grows" disk resize web/root 16M --output=json
has size 16777216 "to that size"
fails 1 "" "and never shrinks" disk resize web/root 8M

ok "another VM" vm create db
fails 1 '"EINVAL"' "a guest agent has an absolute path" vm set db --guest-agent=x --output=json
ok "a guest agent" vm set db --guest-agent=/run/db.sock --output=json
has guest_agent /run/db.sock "is kept"
ok "and goes" vm set db --guest-agent=none --output=json
has guest_agent null "again"
fails 2 "nothing to set" "something must be set" vm set db
ok "with a disk" disk create db/root --size=4M
ok "a collection" collection create prod web db --output=json
has collection prod "has its name"
has disks 4 "and all disks"
fails 1 '"code": 32773' "is not made twice" collection create prod --output=json
fails 1 '"code": 32779' "an unknown member" collection create half web nobody --output=json
v collection show half
is $? 1 "leaves no collection behind"
ok "an empty one" collection create other
fails 1 '"code": 32779' "members are added all or none" collection add other db nobody --output=json
ok "so it is empty" collection show other --output=json
has disks 0 "still"
ok "add" collection add other db web
fails 1 '"code": 32775' "a member is not added twice" collection add other db --output=json
ok "remove" collection remove other web
fails 1 '"code": 32775' "members are removed all or none" collection remove other db web --output=json
ok "so one is left" collection show other --output=json
has disks 1 "still"
ok "rename" collection rename other spare --output=json
has collection spare "renames"
fails 1 '"code": 32779' "the old name is gone" collection rename other x --output=json
ok "list" collection list
grep -qE '^prod +(web, db|db, web) ' out || die "no members in the list"
ok "delete" collection delete spare
fails 1 "" "a VM that is a member stays" vm delete db
ok "a VM without a collection" vm create lone
ok "with a disk" disk create lone/d --size=1M
fails 1 '"ENOTEMPTY"' "stays while it has disks" vm delete lone --output=json
ok "a disk goes" disk delete lone/d
ok "then the VM" vm delete lone
fails 1 "lone" "and is gone" vm show lone

if ! served; then
	echo "- a store in use"
	coproc HOLD { "$VMIMG" disk write db/root 2>/dev/null; }
	printf x >&"${HOLD[1]}"
	for _ in $(seq 100); do
		v --lock-timeout=0 vm list || break
		sleep 0.05
	done
	fails 1 '"EBUSY"' "is busy for others" --lock-timeout=0 vm list --output=json
	eval "exec ${HOLD[1]}>&-"
	wait
	ok "they wait for it" vm list
fi
sound "the store is sound"
! served || serve_stop "the server ends"
head -c 100 /dev/zero >"$VMIMG_STORE/layers/stray"
v check "$VMIMG_STORE"
is $? 3 "a file that belongs to nobody is a leak"
grep -q '^leak: .*stray.*\[[A-Z]*-[0-9]*\]$' out || die "it is not named with a rule"
