#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# nbdinfo: what is exported, with which sizes and abilities, and what is where in it.
. "$(dirname "$0")/common.bash"
needs nbdinfo

can() { # EXPORT yes|no ABILITY...
	local export=$1 wanted=$2 got
	shift 2
	for ability; do
		nbdinfo --can "$ability" "$(uri "$export")" && got=yes || got=no
		is $got $wanted "$export: $ability: $wanted"
	done
}

scene
serve
run "all exports are listed" nbdinfo --list "nbd+unix://?socket=$dir/nbd"
for export in m/a m/b c@s/m/a c@s/m/b; do
	shows "^export=\"$export\":\$" "$export is among them"
done
is "$(grep -c '^export=' out)" 4 "and no other"
run "as JSON" nbdinfo --list --json "nbd+unix://?socket=$dir/nbd"
is "$(grep -c '"export-name"' out)" 4 "too"

run "a size" nbdinfo --size "$(uri m/a)"
is "$(cat out)" $((mib << 20)) "is the disk's"
run "of a snapshot's disk" nbdinfo --size "$(uri c@s/m/a)"
is "$(cat out)" $((mib << 20)) "too"
run "all of an export" nbdinfo "$(uri m/a)"
shows '^protocol: newstyle-fixed without TLS, using structured packets' "the protocol"
shows 'base:allocation' "block status"
shows 'vmimg:depth' "depth"
shows 'vmimg:changed:c@s' "changes since the snapshot"
shows 'block_size_minimum: 1\b' "smallest request"
shows 'block_size_preferred: 4096\b' "best request"
shows 'block_size_maximum: 33554432\b' "largest request"
run "as JSON" nbdinfo --json "$(uri m/a)"
shows '"export-size": '$((mib << 20)) "its size"

can m/a yes write flush fua trim zero fast-zero cache multi-conn df
can c@s/m/a no write trim zero
can c@s/m/a yes multi-conn df
run "a snapshot's disk" nbdinfo --is read-only "$(uri c@s/m/a)"
echo "- a disk is not read-only"
! nbdinfo --is read-only "$(uri m/a)" || die "it is"

map() { # EXPORT CONTEXT: "start length type" of each extent
	nbdinfo --map="$2" --json "$(uri "$1")" 2>err | tr -d ' {}\n' | tr ']' '\n' |
		sed 's/"offset"/\n&/g' |
		sed -n 's/"offset":\([0-9]*\),"length":\([0-9]*\),"type":\([0-9]*\).*/\1 \2 \3/p'
}
half=$((mib << 19))
is "$(map m/a base:allocation | tr '\n' ',')" "0 $half 0,$half $half 3," "what is written, what is not"
is "$(map m/b base:allocation)" "0 $((mib << 20)) 3" "an empty disk is a hole"
is "$(map m/a vmimg:changed:c@s | tr '\n' ',')" \
	"0 1048576 0,1048576 1048576 1,2097152 $(((mib - 2) << 20)) 0," "what has changed since the snapshot"
is "$(map m/b vmimg:changed:c@s)" "0 $((mib << 20)) 0" "nothing on the other disk"
is "$(map m/a vmimg:depth | sed -n 2p)" "1048576 1048576 0" "what the newest layer holds"
"$VMIMG" snapshot create c@r --type=recovery >out && "$VMIMG" refpoint convert c@r >out || die "a point"
is "$(map m/a 'vmimg:changed:c#r')" "0 $((mib << 20)) 0" "nothing since the reference point"
is "$(map c@s/m/a 'vmimg:changed:c#r' | tr '\n' ',')" \
	"0 1048576 0,1048576 1048576 1,2097152 $(((mib - 2) << 20)) 0," "a snapshot against a later point"
run "all of an export, with a point" nbdinfo "$(uri m/a)"
shows 'vmimg:changed:c#r' "which is among its contexts"
run "totals" nbdinfo --map --totals "$(uri m/a)"
shows "^ *$half +50\.0%" "half of it data"

refused 'no_such|unknown|not (found|available)|No such' "no export of another name" nbdinfo "$(uri no_such)"
refused '' "nor of half a name" nbdinfo "$(uri m)"
refused '' "nor of a path" nbdinfo "$(uri m/../m/a)"
stop_serving
sound "the store is sound"
