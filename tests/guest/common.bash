# SPDX-License-Identifier: MIT
#
# Sourced by the scripts of this folder: real guests on served disks (examples/demo-vm/vm.bash). Two VMs,
# a over NBD and b over vhost-user-blk, take turns with writes that depend on each other. Each script
# says what it checks and ends at the first claim that does not hold.
set -uo pipefail
[ -x "${VMIMG:-}" ] || { echo "VMIMG does not name the command: skipped"; exit 77; }
vms='
a nbd
b vhost
'
disks='
a/root ext4 48M
a/log  raw  16M
b/root xfs  300M
b/log  raw  16M
'
turns=0 # that were asked of each chain so far

die() {
	echo "FAILED: $*"
	[ ! -e serve.log ] || tail -n 20 serve.log
	exit 1
}
. "$(dirname "$0")/../../examples/demo-vm/vm.bash"
trap vm_cleanup EXIT

must() { # WHAT COMMAND...
	local what=$1
	shift
	"$@" >log 2>&1 || { tail -n 20 log; die "$what"; }
}

make_store() { # OPTION...: of vm create, with VM in place of its name
	local vm disk fs size
	must "init" "$vmimg" init store
	for vm in $(vm_names); do must "vm create" "$vmimg" vm create "$vm" "${@//VM/$vm}"; done
	while read -r disk fs size; do
		[ -n "$disk" ] || continue
		must "making $disk" make_image "$disk" "$fs" "$size" image
		must "disk create" "$vmimg" disk create "$disk" --from=image --format=raw
	done <<<"$disks"
	# shellcheck disable=SC2046
	must "collection create" "$vmimg" collection create $collection $(vm_names)
}

boot() {
	local vm
	for vm in $(vm_names); do vm_start "$vm"; done
	# shellcheck disable=SC2046
	turns_start $(vm_names)
	go 1
	waited
	echo "- all VMs have booted ($SECONDS s)"
}

go() { # COUNT: so many turns more may be taken
	turns=$((turns + $1))
	ask run $turns
}

waited() { # until they have been
	ask wait $turns
}

took() { # NAME OPTION...: a snapshot that has to succeed
	snapshot "$@" || { cat snapshot.err; die "snapshot create $collection@$1"; }
	echo "- snapshot $1 while the guests run: cut $(json cut_ns snapshot.json) ns, total $(json total_ns snapshot.json) ns"
}

stop() {
	local c
	# shellcheck disable=SC2046
	turns_stop $(vm_names)
	for ((c = 0; c < chains; c++)); do echo "now $c $turns $turns"; done >>marks
	echo "- all VMs have ended in order ($SECONDS s)"
}

in_order() { # SNAPSHOT...: read back, judged by another VM, and the file systems are sound
	judge_all "$@" || die "$*: not in order"
	echo "- $* are in order ($SECONDS s)"
}

finish() {
	serve_stop
	# A server that was killed may leave leaks (SL-1, FO-8), and nothing worse.
	"$vmimg" check store >log 2>&1 || [ $? = 3 ] || { tail -n 20 log; die "vmimg check"; }
	echo "- the store is sound ($SECONDS s)"
}
