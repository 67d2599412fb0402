# SPDX-License-Identifier: MIT
#
# Sourced by the scripts of this folder: programs that others wrote, against `vmimg serve`. Adds to the
# helpers of tests/cli a server of $VMIMG_STORE, which goes with the script.
. "$(dirname "${BASH_SOURCE[0]}")/../cli/common.bash"
server=
leave() {
	[ -z "$server" ] || { kill "$server" 2>/dev/null; wait "$server" 2>/dev/null; }
	rm -rf "$dir"
}
trap leave EXIT

needs() { # PROGRAM...: skipped without them
	local p
	for p; do
		command -v "$p" >/dev/null || { echo "no $p: skipped"; exit 77; }
	done
}

serve() { # ARG...: in the background; its socket is $dir/nbd, its log $dir/log
	rm -f "$dir/pid"
	"$VMIMG" serve --nbd="$dir/nbd" --pid-file="$dir/pid" "$@" \
		</dev/null >log 2>&1 &
	server=$!
	local i
	for ((i = 0; i < 300; i++)); do
		[ ! -s "$dir/pid" ] || return 0
		kill -0 "$server" 2>/dev/null || break
		sleep 0.1
	done
	cp log err
	die "vmimg serve $* does not start"
}

stop_serving() {
	local pid=$server
	echo "- the server ends when asked to"
	kill "$pid"
	wait "$pid" || { server=; cp log err; die "status $?"; }
	server=
}

uri() { # EXPORT
	echo "nbd+unix:///$1?socket=$dir/nbd"
}

run() { # CLAIM COMMAND...: succeeds; output in out and err
	local claim=$1
	shift
	echo "- $claim"
	"$@" >out 2>err </dev/null || { local s=$?; cat log >>err; die "$claim: $*: status $s"; }
}

refused() { # PATTERN CLAIM COMMAND...: fails, and says why
	local pattern=$1 claim=$2
	shift 2
	echo "- $claim"
	! "$@" >out 2>err </dev/null || die "$claim: $*: succeeds"
	grep -qE -- "$pattern" out err || die "$claim: $*: no '$pattern' in what it says"
}

shows() { # PATTERN CLAIM: a line of out
	echo "- $2"
	grep -qE -- "$1" out || die "$2: no '$1'"
}

# A VM m with the disks a and b of $mib MiB in the collection c: a holds the file noise, then the
# snapshot c@s is taken, then the second MiB of a is written anew (file after).
mib=16
scene() {
	init
	v vm create m || die "vm"
	v disk create m/a --size=${mib}M && v disk create m/b --size=${mib}M || die "disks"
	v collection create c m || die "collection"
	noise noise $((mib << 19)) # the first half
	"$VMIMG" disk write m/a 0 <noise || die "disk write"
	v snapshot create c@s || die "snapshot"
	noise mebibyte 1048576
	"$VMIMG" disk write m/a 1048576 <mebibyte || die "disk write"
	cp noise before
	truncate -s ${mib}M before
	cp before after
	dd if=mebibyte of=after bs=1M seek=1 conv=notrunc status=none
}
