#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# demo.sh - the main job on real input. Three VMs with seven disks are made from ext4 and XFS images with
# real files in them; all disks are under load, with writes that depend on each other across the VMs,
# when a snapshot of the collection is created. Then every disk is read back from it and judged: by the
# load's own records and by its file system's checker. `make demo` runs it; as root it asks FIEMAP for
# the extents, else debugfs and xfs_db. Status 0 only when every check passed.
set -uo pipefail
export LC_ALL=C.UTF-8 PATH=$PATH:/usr/sbin:/sbin

usage() {
	cat <<-END
	usage: demo.sh [--keep] [--no-mount] [--seconds=N]
	  --keep       leave the images, the store and the logs behind
	  --no-mount   find extents without loop mounts
	  --seconds=N  of load before the snapshot, and again after it (default: 5)
	Works in a directory of its own under TMPDIR, else under the build directory.
	END
}

keep= mounts=1 seconds=5 loading=
for arg; do
	case $arg in
	--keep) keep=1 ;;
	--no-mount) mounts= ;;
	--seconds=[1-9] | --seconds=[1-9][0-9]) seconds=${arg#*=} ;;
	--help) usage; exit 0 ;;
	*) usage >&2; exit 2 ;;
	esac
done

build=${VMIMG_BUILD:-$(cd "$(dirname "$0")/../.." && pwd)/build}
vmimg=${VMIMG:-$build/vmimg}
load=$build/examples/demo/load
snapshot=demo@snap

# Disk, file system, size, how it is imported, where its files come from. A chain of dependent writes
# visits the disks in this order: neighbours, the last and the first too, belong to different VMs.
disks='
web/root  ext4  160M  raw       /usr/include
db/root   ext4  160M  qcow2     /usr/lib/gcc
app/root  ext4  160M  in-place  /usr/lib
web/data  xfs   300M  raw       /usr/share
db/log    xfs   300M  raw       /var/lib/dpkg
app/data  xfs   300M  raw       /usr/include
db/data   ext4  160M  raw       /usr/share
'
files_mib=24     # real files in each file system, at most
load_mib=16      # the file that the load writes
need_mib=2500   # free space that it needs

# ---- what is printed ------------------------------------------------------------------------------

. "$(dirname "${BASH_SOURCE[0]}")/../console.bash"
passed=0 failed=0
indent() { sed '/./s/^/   /' "$@"; }

# Counts a check; prints "ok" or "FAILED", and where it failed the end of its log.
verdict() {
	if [ "$1" = 0 ]; then
		passed=$((passed + 1))
		word=ok
	else
		failed=$((failed + 1))
		word=FAILED
		failures+=("$2")
		tail -n 5 "$3" | sed 's/^/     /'
	fi
}
coloured() { # WORD WIDTH
	local colour=$green
	[ "$1" = ok ] || colour=$red
	printf '%s%-*s%s' "$colour" "$2" "$1" "$off"
}
failures=()

# ---- images ---------------------------------------------------------------------------------------

# Copies real files from $1 into $2: regular, readable, plainly named, $files_mib MiB at most, and no
# more of a directory than mkfs.xfs can fill one with.
copy_tree() {
	mkdir -p "$2" &&
	{ find "$1" -xdev -type f -readable -size -2048k -printf '%s %P\n' 2>/dev/null || :; } | sort -k 2 |
		awk -v max=$((files_mib << 20)) \
			'NF != 2 || $2 !~ /^[A-Za-z0-9._\/+-]+$/ || sum + $1 + 4096 > max { next }
			{ dir = $2; sub(/[^\/]*$/, "", dir) }
			count[dir]++ < 200 && n++ < 1500 { sum += $1 + 4096; print $2 }' >"$work/files" &&
	tar -C "$1" -c -T "$work/files" | tar -C "$2" -x --no-same-owner
}

# The prototype file that mkfs.xfs fills a file system from, without a mount.
prototype() {
	local f
	for f in "$1"/*; do
		if [ -d "$f" ]; then
			echo "${f##*/} d--755 0 0"
			prototype "$f"
			echo '$'
		else
			echo "${f##*/} ---644 0 0 $f"
		fi
	done
}

make_image() { # FILESYSTEM SIZE TREE IMAGE
	truncate -s "$2" "$4" || return
	if [ "$1" = ext4 ]; then
		mkfs.ext4 -q -F -b 4096 -m 0 -d "$3" "$4" || return
	else
		{ printf '/dev/null\n0 0\nd--755 0 0\n'; prototype "$3"; echo '$'; } >"$work/prototype"
		mkfs.xfs -q -p "$work/prototype" "$4" || return
	fi
	fallocate -d "$4"
}

fsck_image() { # FILESYSTEM IMAGE
	case $1 in
	ext4) e2fsck -fn "$2" ;;
	xfs) xfs_repair -n -f "$2" ;;
	esac
}

# Lines "OFFSET LENGTH": where load.dat lies in the image. FIEMAP needs a mount, and that root.
extents_mounted() { # FILESYSTEM IMAGE
	local options=loop,ro status
	[ "$1" = xfs ] && options+=,norecovery
	mkdir -p "$work/mnt" && mount -t "$1" -o $options "$2" "$work/mnt" || return
	"$load" extents "$work/mnt/load.dat"
	status=$?
	umount "$work/mnt" && return $status
}
extents_ext4() {
	debugfs -R 'dump_extents -l /load.dat' "$1" | awk '
		NR > 1 { gsub(/[-\/]/, " ")
			 if ($5 != next_block || NF != 9) exit 1
			 next_block += $9; print $7 * 4096, $9 * 4096 }'
}
extents_xfs() {
	xfs_db -r -c 'sb 0' -c 'print blocksize agblocks' -c 'path /load.dat' -c bmap "$1" | awk '
		$1 == "blocksize" { size = $3 }
		$1 == "agblocks" { group = $3 }
		$1 == "data" {
			if ($3 != next_block || $10 != 0) exit 1
			next_block += $8; split($6, at, /[(\/)]/)
			print (at[2] * group + at[3]) * size, $8 * size }'
}
extents() { # FILESYSTEM IMAGE
	if [ -n "$mounts" ]; then extents_mounted "$@"; else "extents_$1" "$2"; fi
}

# ---- reading back ---------------------------------------------------------------------------------

# Reads every disk of $1 ("", or a snapshot's prefix) into $2 and runs the checkers over them. The
# words for the table go to data_$3 and fsck_$3.
read_back() { # PREFIX DIRECTORY STATE
	local disk fs size import from image status where=$3
	local -n data=data_$3 fsck=fsck_$3
	mkdir -p "$2" || die "cannot make $2"
	while read -r disk fs size import from; do
		[ -n "$disk" ] || continue
		image=$2/${disk/\//.}.img
		"$vmimg" disk read "$1$disk" 2>"$work/log" |
			dd of="$image" bs=64K iflag=fullblock conv=sparse status=none 2>>"$work/log"
		verdict $? "reading $1$disk" "$work/log"
		fsck_image "$fs" "$image" >"$work/fsck.log" 2>&1
		verdict $? "the file system of $1$disk" "$work/fsck.log"
		fsck[$disk]=$word
	done <<<"$disks"
	"$load" verify "$work/plan" "$work/state" "$where" "$2" "$work/images" >"$work/verify" 2>&1
	status=$?
	verdict $status "the data of $where" /dev/null
	while read -r kind disk word rest; do
		[ "$kind" = disk ] && data[$disk]=$word
	done <"$work/verify"
	indent "$work/verify"
	[ -n "$keep" ] || rm -rf "$2"
}

cleanup() {
	# A load that was cut off left its journals in shared memory; opening the store takes them in.
	[ -z "$loading" ] || "$vmimg" tree >/dev/null 2>&1
	mountpoint -q "$work/mnt" 2>/dev/null && umount "$work/mnt"
	[ -n "$keep" ] && echo "kept: $work" || rm -rf "$work"
}

# ---- the demo -------------------------------------------------------------------------------------

parent=${TMPDIR:-$build}
mkdir -p "$parent" && work=$(mktemp -d "$parent/vmimg-demo.XXXXXX") || exit 1
trap cleanup EXIT
trap 'exit 130' INT TERM
for tool in "$vmimg" "$load" mkfs.ext4 mkfs.xfs debugfs e2fsck xfs_db xfs_repair qemu-img; do
	command -v "$tool" >/dev/null || die "$tool is missing: run 'make deps' and 'make all examples'"
done
free_mib=$(df -Pm "$work" | awk 'NR == 2 { print $4 }')
[ "$free_mib" -ge $need_mib ] || die "$work has $free_mib MiB free, expected at least $need_mib"
if [ "$(id -u)" != 0 ]; then mounts=; fi
export VMIMG_STORE=$work/store
mkdir "$work/images" "$work/tree"

echo "${bold}vmimg demo: three VMs, seven disks with file systems in use, one instant$off"

step_begin "Disk images with real files, and in each one file for the load"
while read -r disk fs size import from; do
	[ -n "$disk" ] || continue
	tree=$work/tree/${disk/\//.} image=$work/images/${disk/\//.}.img
	must "copying files from $from" copy_tree "$from" "$tree"
	must "making load.dat" "$load" fill "$tree/load.dat" "$disk" $load_mib
	must "mkfs.$fs" make_image "$fs" "$size" "$tree" "$image"
	must "the new $fs image is not sound" fsck_image "$fs" "$image"
	if ! extents "$fs" "$image" >"$work/extents" 2>"$work/log" && [ -n "$mounts" ]; then
		mounts=
		extents "$fs" "$image" >"$work/extents" 2>"$work/log"
	fi
	awk -v want=$((load_mib << 20)) '{ sum += $2 } END { exit sum != want }' "$work/extents" ||
		{ cat "$work/log"; die "no extents of load.dat in $disk"; }
	sed "s|^|$disk |" "$work/extents" >>"$work/plan"
	printf '   %-9s %-5s %5s  %5d files from %-14s load.dat %d MiB in %d extent(s)\n' "$disk" "$fs" \
		"$size" "$(find "$tree" -type f | wc -l)" "$from" $load_mib "$(wc -l <"$work/extents")"
	case $import in
	qcow2 | in-place)
		must "qemu-img convert" qemu-img convert -c -O qcow2 "$image" "${image%.img}.qcow2" ;;
	esac
	rm -rf "$tree"
done <<<"$disks"
if [ -n "$mounts" ]; then
	say "extents found with FIEMAP on read-only loop mounts"
else
	say "extents found with debugfs and xfs_db (no loop mounts here)"
fi
step_end

step_begin "A store, three VMs, a collection"
must "vmimg init" "$vmimg" init "$VMIMG_STORE"
for vm in web db app; do must "vm create $vm" "$vmimg" vm create $vm; done
while read -r disk fs size import from; do
	[ -n "$disk" ] || continue
	image=$work/images/${disk/\//.}.img
	create=("$vmimg" disk create "$disk" --no-progress)
	case $import in
	raw) create+=(--from="$image" --format=raw) how="raw, copied in" ;;
	qcow2) create+=(--from="${image%.img}.qcow2") how="compressed qcow2, copied in" ;;
	in-place) create+=(--from="${image%.img}.qcow2" --in-place)
		how="compressed qcow2, read where it is" ;;
	esac
	at=$(now_ms)
	must "disk create $disk" "${create[@]}"
	printf '   %-9s %-36s %s\n' "$disk" "$how" "$(since "$at")"
done <<<"$disks"
must "collection create" "$vmimg" collection create demo web db app
step_end

step_begin "A first snapshot, at rest: vmimg snapshot create demo@import"
must "vmimg snapshot create" "$vmimg" snapshot create demo@import
indent "$work/log"
step_end

step_begin "Load on all disks; in its middle: CreateSnapshot(demo), type Standard, asynchronous job"
say "each disk: random 4 KiB writes, 4 in flight, one request in 64 a flush"
say "four chains over all VMs: write k+1 goes to another VM once write k is acknowledged"
say "$seconds s of it before the call, $seconds s after"
echo
loading=1
"$load" run "$VMIMG_STORE" $snapshot "$work/plan" "$work/state" "$seconds" 2>"$work/load.log" |
	indent -u
[ "${PIPESTATUS[0]}" = 0 ] || { cat "$work/load.log"; die "the load did not go through"; }
loading=
step_end

step_begin "The store afterwards: vmimg tree"
must "vmimg tree" "$vmimg" tree
indent "$work/log"
step_end

declare -A data_snapshot=() fsck_snapshot=() data_live=() fsck_live=()
step_begin "The snapshot, read back: $snapshot"
read_back "$snapshot/" "$work/snapshot" snapshot
step_end

step_begin "The first snapshot: still what was imported, byte by byte"
while read -r disk fs size import from; do
	[ -n "$disk" ] || continue
	"$vmimg" disk read "demo@import/$disk" 2>"$work/log" |
		cmp - "$work/images/${disk/\//.}.img" >>"$work/log" 2>&1
	verdict $? "demo@import/$disk" "$work/log"
	printf '   %-10s ' "$disk"
	coloured $word 0; echo
done <<<"$disks"
step_end

step_begin "The disks as they are now"
read_back "" "$work/live" live
step_end

step_begin "The store itself: vmimg check"
"$vmimg" check "$VMIMG_STORE" >"$work/check" 2>&1
verdict $? "vmimg check" "$work/check"
say "$(tail -n 1 "$work/check" | sed "s|$work/||")"
step_end

step_begin "Verdict"
printf '   %-10s %-6s   %-20s   %s\n' "" "" "$snapshot" "now"
printf '   %-10s %-6s   %-8s %-11s   %-8s %s\n' disk "" data "own check" data "own check"
while read -r disk fs size import from; do
	[ -n "$disk" ] || continue
	printf '   %-10s %-6s   ' "$disk" "$fs"
	coloured "${data_snapshot[$disk]:-FAILED}" 9
	coloured "${fsck_snapshot[$disk]:-FAILED}" 14
	coloured "${data_live[$disk]:-FAILED}" 9
	coloured "${fsck_live[$disk]:-FAILED}" 0; echo
done <<<"$disks"
echo
if [ $failed = 0 ]; then
	echo "${green}All checks passed:${off} $passed checks; 7 disks of 3 VMs at one instant; $(since "$begin_ms")."
else
	echo "${red}FAILED:${off} $failed of $((passed + failed)) checks, in $(since "$begin_ms"):"
	printf '   %s\n' "${failures[@]}"
	exit 1
fi
