#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Real guests: a backup cycle of VMs that run. A full export, then twenty rounds of recovery snapshot,
# incremental export against the last reference point, conversion, and the old point's end. Restored into
# an empty store, the snapshots are in order (P1): each has the writes that were acknowledged before it and
# none issued after it, and a VM mounts their file systems, which replays their journals: of three, and in
# `make soak` of all. The VMs boot from what was restored, from a snapshot in the middle and from their own
# disks, and go on from where it was taken.
. "$(dirname "$0")/common.bash"
rounds=20 looked="0 10 20"
[ "${VMIMG_TEST_SECONDS:-0}" -lt 300 ] || looked=$(seq -s ' ' 0 $rounds)

backup() { # ROUND: of the running VMs; what is exported is all, or what has changed since the last round
	local name=$collection@r$1 base=()
	go 20
	ask wait $((turns - 10))
	snapshot "r$1" --type=recovery || { cat snapshot.err; die "snapshot create $name"; }
	[ "$1" = 0 ] || base=(--base="#p$(($1 - 1))")
	must "export of $name" "$vmimg" snapshot export "$name" "backup$1" "${base[@]}"
	must "conversion of $name" "$vmimg" refpoint convert "$name" "$collection#p$1"
	[ "$1" = 0 ] || must "end of the old point" "$vmimg" refpoint delete "$collection#p$(($1 - 1))"
}

vm_setup
make_store
serve_start
boot
for ((i = 0; i <= rounds; i++)); do backup $i; done
waited
echo "- backed up $((rounds + 1)) times while the guests ran ($SECONDS s)"
stop
finish
full=$(du -sk backup0 | cut -f 1)
for ((i = 1; i <= rounds; i++)); do
	[ "$(du -sk backup$i | cut -f 1)" -lt "$full" ] || die "backup$i is as large as the full one"
done
mv store lost

must "init" "$vmimg" init store
for ((i = 0; i <= rounds; i++)); do must "import of backup$i" "$vmimg" snapshot import backup$i; done
echo "- restored into an empty store ($SECONDS s)"
serve_start
# shellcheck disable=SC2046,SC2086
in_order $(printf "$collection@r%s " $looked)
boot_again $collection@r10
echo "- $collection@r10 boots, and its guests go on ($SECONDS s)"
boot_again "$collection@r$rounds" own
echo "- so do the VMs from their own disks, which are $collection@r$rounds ($SECONDS s)"
finish
