#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# snapshot diff: the ranges, as JSON and for humans, against a comparison of what was read (DF-13).
. "$(dirname "$0")/common.bash"

init
v vm create web || die "vm"
for disk in root data; do
	v disk create web/$disk --size=4M || die "disk"
	noise web-$disk 4M
	"$VMIMG" disk write web/$disk <web-$disk || die "write"
done
v collection create prod web || die "collection"
v snapshot create prod@a || die "snapshot"

write() { # DISK OFFSET LENGTH
	noise piece "$3"
	"$VMIMG" disk write "$1" "$2" <piece || die "write"
}

ranges() { # DISK: its ranges in out, START+LENGTH, one a line
	grep -o "\"disk\":\"$1\".*" out | sed 's/\]}.*//' | grep -o '"start":[0-9]*,"length":[0-9]*' |
		sed 's/"start":\([0-9]*\),"length":\([0-9]*\)/\1+\2/'
}

# Every byte that differs between two files lies in a range of the lines of $3.
covered() { # A B RANGES
	cmp -l "$1" "$2" | awk -v list="$3" '
		BEGIN { n = split(list, r, "[ \n]") }
		{ ok = 0
		  for (i = 1; i <= n; i++) {
			split(r[i], p, "+")
			if ($1 - 1 >= p[1] && $1 - 1 < p[1] + p[2]) { ok = 1; break }
		  }
		  if (!ok) { print "byte " $1 - 1; bad = 1; exit }
		}
		END { exit bad }' || die "$4"
	echo "- $4"
}

ok "nothing was written" snapshot diff prod@a --output=json
is "$(ranges web/root)$(ranges web/data)" "" "no ranges"
write web/root 40960 8192
write web/root 49152 100
write web/data 4190208 4096
ok "something was" snapshot diff prod@a --output=json
is "$(ranges web/root)" "40960+12288" "its whole blocks, merged"
is "$(ranges web/data)" "4190208+4096" "the last block"
grep -q '"from":"prod@a","to":"now"' out || die "from and to"
v snapshot create prod@b || die "snapshot"
write web/root 1M 4096
ok "between snapshots" snapshot diff prod@a prod@b --output=json
is "$(ranges web/root)" "40960+12288" "what came later is not in it"
for disk in root data; do
	"$VMIMG" disk read prod@a/web/$disk 0 4M >a || die "read"
	"$VMIMG" disk read prod@b/web/$disk 0 4M >b || die "read"
	covered a b "$(ranges web/$disk)" "$disk: every byte that differs is in a range"
done
v snapshot diff prod@b prod@a --output=json || die "diff"
is "$(ranges web/root)" "40960+12288" "backwards it is the same"
v snapshot delete prod@b || die "delete"
ok "over a deleted snapshot" snapshot diff prod@a --output=json
is "$(ranges web/root)" "40960+12288
1048576+4096" "its changes count"

ok "for humans" snapshot diff prod@a
grep -qE '^web/root +4 MiB +16 KiB +2 +yes' out || die "no table"
ok "range by range" snapshot diff prod@a --ranges
grep -qE '^web/root +1048576 +4096$' out || die "no ranges"

v snapshot create prod@r --type=recovery && v refpoint convert prod@r || die "reference point"
write web/data 8192 4096
ok "since a reference point" snapshot diff 'prod#r' --output=json
is "$(ranges web/data)" "8192+4096" "what was written"
is "$(ranges web/root)" "" "and nothing else"
ok "from a snapshot to one" snapshot diff prod@a 'prod#r' --output=json
is "$(ranges web/data)" "4190208+4096" "what was written before it"

fails 1 'prod@x: no such snapshot' "an unknown one is an error" snapshot diff prod@x
fails 1 '"code": "ENOENT"' "as JSON too" snapshot diff prod@b --output=json
fails 1 'no such reference point' "so is a reference point" snapshot diff prod#x
fails 1 'expected COLLECTION@NAME' "a collection is no snapshot" snapshot diff prod
fails 2 '' "something is to be named" snapshot diff
