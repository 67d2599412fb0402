#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# What keeps snapshots: holds and retention (HD, RT).
. "$(dirname "$0")/common.bash"

init
v vm create web && v disk create web/root --size=4M && v collection create prod web || die "disks"
for i in 1 2 3 4; do
	noise "data$i" 1048576
	"$VMIMG" disk write web/root 0 <"data$i" || die "write"
	v snapshot create "prod@s$i" || die "snapshot s$i"
done

# --- holds ---
ok "a hold" snapshot hold prod@s1 audit
ok "another one" snapshot hold prod@s1 backup --output=json
has return_value 0 "is no error"
ok "they are listed" snapshot holds --output=json
is "$(grep -c '"tag"' out)" 2 "both"
ok "of one snapshot, too" snapshot holds prod@s1
grep -qE '^prod@s1 +audit ' out || die "no table"
ok "the list of snapshots" snapshot list prod
grep -qE '^prod@s1 .* no +audit, backup ' out || die "the list does not tell of the holds"
ok "of a collection without" snapshot holds prod@s2 --output=json
is "$(grep -c '"tag"' out)" 0 "none"
fails 1 'held by audit, backup' "a held snapshot stays" snapshot delete prod@s1
fails 1 '"code": 5' "5: its state is wrong for that" snapshot delete prod@s1 --output=json
fails 1 '"code": 4' "4: the tag is there" snapshot hold prod@s1 audit --output=json
fails 1 '"code": 4' "4: no such tag" snapshot release prod@s1 other --output=json
fails 1 '"code": 4' "4: no such snapshot" snapshot hold prod@none audit --output=json
fails 2 "missing argument" "a tag is needed" snapshot hold prod@s1
ok "released" snapshot release prod@s1 backup
fails 1 'held by audit$' "one is enough" snapshot delete prod@s1

# --- retention ---
fails 2 "at least one" "a rule is needed" snapshot prune prod
fails 2 "not a number" "of a number" snapshot prune prod --keep-last=many
fails 1 '"code": 4' "4: no such collection" snapshot prune none --keep-last=1 --output=json
fails 1 '"code": 4' "4: a bound" snapshot prune prod --keep-last=1000001 --output=json
ok "a dry run" snapshot prune prod --keep-last=1 --keep-yearly=2 --dry-run --output=json
has kept 2 "tells how many stay"
has deleted 0 "and deletes none"
grep -q '"held: audit"' out || die "no reason for s1"
grep -q '"yearly #1"' out || die "no reason for s4"
ok "in words" snapshot prune prod --keep-last=1 -n
grep -qE '^keep +prod@s4 .*last #1' out || die "no line for s4"
grep -qE '^delete +prod@s2 ' out || die "no line for s2"
tail -n 1 out | grep -q '^2 kept, 2 would be deleted$' || die "no sum"
ok "nothing went" snapshot list prod --output=json
is "$(grep -c '"snapshot":' out)" 4 "all are there"
ok "for good" snapshot prune prod --keep-last=1 --output=json
has kept 2 "two stay"
has deleted 2 "two go"
ok "again" snapshot prune prod --keep-last=1 --output=json
has deleted 0 "there is nothing left to do"
"$VMIMG" disk read prod@s1/web/root 0 1048576 >back
same data1 back "the held one holds what it did"
"$VMIMG" disk read prod@s4/web/root 0 1048576 >back
same data4 back "and so does the last one"
ok "released" snapshot release prod@s1 audit
ok "it goes, too" snapshot prune prod --keep-last=1 --output=json
has deleted 1 "by the same rule"
sound "the store is sound"

# --- the space guard ---
ok "the store's space" store show --output=json
has space_reserve_default true "has a reserve by default"
has masked "$(get masked)" "and tells what waits for a fold"
ok "another reserve" store reserve 4096T --output=json
has space_reserve 4503599627370496 "is in force at once"
has space_state reached "and seen"
fails 1 '"code": 5' "5: no snapshot below it" snapshot create prod@s9 --output=json
grep -q 'below the reserve' err || die "the reason is not told"
fails 2 "not a number" "a size is needed" store reserve much
ok "back to the default" store reserve default
ok "snapshots are created again" snapshot create prod@s9
ok "used and exclusive" snapshot show prod@s9 --output=json
has exact true "are counted exactly on an idle disk"
