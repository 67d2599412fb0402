#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# refpoint convert, create, list, show, delete: what is there afterwards, every answer that can be reached,
# and that changes are told through folds and reopening (spec/refpoint.md).
. "$(dirname "$0")/common.bash"

init
for vm in web db; do
	v vm create $vm || die "vm"
	v disk create $vm/root --size=4M || die "disk"
done
v disk create web/data --size=4M || die "disk"
v collection create prod web db || die "collection"

write() { # DISK OFFSET LENGTH
	noise piece "$3"
	"$VMIMG" disk write "$1" "$2" <piece || die "write"
}

ranges() { # DISK: its ranges in out, START+LENGTH, one a line
	grep -o "\"disk\":\"$1\".*" out | sed 's/\]}.*//' | grep -o '"start":[0-9]*,"length":[0-9]*' |
		sed 's/"start":\([0-9]*\),"length":\([0-9]*\)/\1+\2/'
}

changes() { # POINT DISK RANGES CLAIM
	v snapshot diff "$1" --output=json || die "$4: diff"
	is "$(ranges "$2")" "$3" "$4"
}

ids() { # KEY: the strings of that array in out, one a line, over all virtual systems
	sed -n "/\"$1\": \[/,/\]/p" out | grep -oE '[0-9a-f]{8}-[0-9a-f-]{27}'
}

# --- conversion
write web/root 0 8192
v snapshot create prod@std || die "snapshot"
write web/root 40960 4096
v snapshot create prod@b1 --type=recovery || die "snapshot"
write web/root 81920 4096
write db/root 0 4096
fails 1 '"code": 6' "6: a standard snapshot" refpoint convert prod@std --output=json
fails 1 '"code": 4' "4: no such snapshot" refpoint convert prod@none --output=json
fails 1 '"code": 4' "4: a malformed name" refpoint convert prod@b1 prod@p --output=json
fails 1 '"code": 4' "4: of another collection" refpoint convert prod@b1 'nobody#p' --output=json
ok "a snapshot's conversion" refpoint convert prod@b1 --output=json
has refpoint prod#b1 "the point has its name"
has return_value 0 "returned 0"
has type 2 "is of type RCT"
has consistency_level 1 "1 is Crash, here and nowhere else"
has snapshot prod@b1 "says what it was made of"
[ "$(grep -c '"consistency_level": 2' out)" = 2 ] || die "2 is Crash for each VM's"
[ "$(ids virtual_disk_identifiers | sort -u | wc -l)" = 3 ] || die "ids of three disks"
[ "$(ids resilient_change_tracking_identifiers | sort -u | wc -l)" = 3 ] || die "three RCT ids"
paste -d ' ' <(ids virtual_disk_identifiers) <(ids resilient_change_tracking_identifiers) >pairs
paste -d ' ' <(sed -n 's/.*"disk_id": "\(.*\)",/\1/p' out) \
	<(sed -n 's/.*"rct_id": "\(.*\)",/\1/p' out) >members
same pairs members "ids and disks are paired by their place"
fails 1 'no such snapshot|none of this name' "the snapshot is gone" snapshot show prod@b1
changes 'prod#b1' web/root 81920+4096 "what was written since its cut"
changes 'prod#b1' db/root 0+4096 "on each disk"
changes 'prod#b1' web/data "" "and nothing else"

# --- a point without a snapshot
ok "a point of now" refpoint create 'prod#p1'
grep -q '^prod#p1: 3 disks, crash consistent' out || die "no line for humans"
fails 1 '"code": 4' "4: a taken name" refpoint create 'prod#p1' --output=json
fails 1 '"code": 4' "4: no such collection" refpoint create 'nobody#p1' --output=json
fails 1 '"code": 1' "1: no guest agent" refpoint create 'prod#p2' --consistency=application --output=json
changes 'prod#p1' web/root "" "nothing was written since"
write web/data 4096 512
changes 'prod#p1' web/data 4096+4096 "a whole block was"
ok "a point gets a name" refpoint create prod --output=json
get refpoint | grep -qE '^prod#p-[0-9]{8}-[0-9]{6}' || die "not from the time: $(get refpoint)"
v refpoint delete "$(get refpoint)" || die "delete"

# --- they outlive snapshots, folds and reopening
v snapshot create prod@b2 --type=recovery || die "snapshot"
write web/root 122880 4096
ok "with a name of its own" refpoint convert prod@b2 'prod#p2'
v snapshot delete prod@std || die "delete"
write web/root 0 4096
ok "everything is folded" settle --whole
changes 'prod#b1' web/root "$(printf '0+4096\n81920+4096\n122880+4096')" "changes through folds"
changes 'prod#p2' web/root "$(printf '0+4096\n122880+4096')" "of the later one, too"
served && { serve_stop "the server ends"; serve; }
changes 'prod#b1' web/root "$(printf '0+4096\n81920+4096\n122880+4096')" "and a reopening"

# --- export
ok "an export, with what has changed since another" refpoint export 'prod#p2' exported --base='#b1' --output=json
has refpoint prod#p2 "tells what it is of"
has base prod#b1 "since what"
has target "$dir/exported" "and where"
has return_value 0 "returned 0"
grep -q '"from":"prod#b1","to":"prod#p2"' <(tr -d ' ' <exported/refpoint.json) || die "other changes"
fails 1 '"code": 4' "4: a directory that is there" refpoint export 'prod#p2' exported --output=json
fails 1 '"code": 4' "4: no such point" refpoint export 'prod#none' exported2 --output=json
fails 1 '"code": 4' "4: no such base" refpoint export 'prod#p2' exported2 --base='#none' --output=json
[ ! -e exported2 ] && [ ! -e exported2.part ] || die "something is left"

# --- looking, and the end
ok "a list" refpoint list prod --output=json
[ "$(grep -c '"refpoint":' out)" = 3 ] || die "three points"
ok "for humans" refpoint list
grep -qE '^prod#p2 .* yes .* prod@b2' out || die "no line of p2"
ok "the tree has them" tree
grep -q 'prod#p1 .*reference point' out || die "not in the tree"
fails 1 '"code": 32775' "32775: a collection with points" collection delete prod --output=json
v snapshot create prod@held --type=recovery || die "snapshot"
v snapshot hold prod@held backup || die "hold"
fails 1 '"code": 5' "5: a held snapshot" refpoint convert prod@held --output=json
v snapshot release prod@held backup || die "release"
v snapshot delete prod@held || die "delete"
ok "a renamed collection" collection rename prod live
ok "takes them along" refpoint show 'live#p1'
for p in b1 p1 p2; do
	ok "deleted: $p" refpoint delete "live#$p" --output=json
	has return_value 0 "returned 0"
done
fails 1 '"code": 4' "4: no such point" refpoint delete 'live#p1' --output=json
fails 1 ENOENT "nor to be shown" refpoint show 'live#p1' --output=json
sound "the store is sound"
ok "without points the collection goes" collection delete live
