#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# demo-vm.sh - real guests on served disks. Three VMs boot from the disks of a store that `vmimg serve`
# serves over NBD and vhost-user-blk, and write in turns, each write only after the one before it was
# acknowledged to another VM. Snapshots of all disks are taken meanwhile; the server and a VM are killed;
# then every snapshot is read back and judged, and one of them boots. `make demo-vm` runs it. Status 0
# only when every check passed. Needs no KVM, no loop mounts and no root, beyond `make deps`.
set -uo pipefail
export LC_ALL=C.UTF-8

usage() {
	cat <<-END
	usage: demo-vm.sh [--keep] [--turns=N] [--snapshots=N]
	  --keep         leave the disks, the store and the logs behind
	  --turns=N      dependent writes of each of two chains, while snapshots are taken (default: 5000)
	  --snapshots=N  taken meanwhile (default: 50)
	Works in a directory of its own under TMPDIR, else under the build directory.
	END
}

keep= turns=5000 snapshots=50
for arg; do
	case $arg in
	--keep) keep=1 ;;
	--turns=* | --snapshots=*)
		value=${arg#*=}
		case $value in '' | 0* | *[!0-9]*) usage >&2; exit 2 ;; esac
		case $arg in --turns=*) turns=$value ;; *) snapshots=$value ;; esac
		;;
	--help) usage; exit 0 ;;
	*) usage >&2; exit 2 ;;
	esac
done

vms='
a nbd
b vhost
c nbd
'
disks='
a/root ext4 64M
a/log  raw  32M
b/root xfs  300M
b/log  raw  32M
c/root ext4 64M
c/data xfs  300M
c/log  raw  32M
'
need_mib=3500 # free space that it needs

# ---- what is printed ------------------------------------------------------------------------------

. "$(dirname "${BASH_SOURCE[0]}")/../console.bash"
passed=0 failures=()
us() { awk -v ns="$1" 'BEGIN { printf ns < 1e6 ? "%.1f us" : "%.1f ms", ns < 1e6 ? ns / 1e3 : ns / 1e6 }'; }
check() { # STATUS WHAT
	if [ "$1" = 0 ]; then passed=$((passed + 1)); else failures+=("$2"); fi
}

# ---- the demo -------------------------------------------------------------------------------------

. "$(dirname "${BASH_SOURCE[0]}")/vm.bash"
trap 'vm_cleanup "$keep"' EXIT
trap 'exit 130' INT TERM
echo "${bold}vmimg demo with real guests: three VMs, seven disks, one instant$off"

step_begin "What the VMs boot from"
vm_setup
free_mib=$(df -Pm . | awk 'NR == 2 { print $4 }')
[ "$free_mib" -ge $need_mib ] || die "$work has $free_mib MiB free, expected at least $need_mib"
say "$(file -b "$images/vmlinuz" 2>/dev/null | grep -o 'version [^ ]*' || echo "Debian's cloud kernel"), busybox" \
	"and $(wc -l <"$images/initrd.tree/modules/order") modules; accelerator: $(accelerator)"
step_end

step_begin "A store with three VMs and their disks"
must "vmimg init" "$vmimg" init store
for vm in $(vm_names); do must "vm create $vm" "$vmimg" vm create "$vm" --guest-agent="$work/$vm.agent"; done
while read -r disk fs size; do
	[ -n "$disk" ] || continue
	must "making $disk" make_image "$disk" "$fs" "$size" image
	must "disk create $disk" "$vmimg" disk create "$disk" --from=image --format=raw --no-progress
	printf '   %-7s %-5s %5s over %s\n' "$disk" "$fs" "$size" "$(vm_transport "${disk%/*}")"
	rm image
done <<<"$disks"
# shellcheck disable=SC2046
must "collection create" "$vmimg" collection create $collection $(vm_names)
step_end

step_begin "vmimg serve; the VMs boot"
serve_start
for vm in $(vm_names); do vm_start "$vm"; done
# shellcheck disable=SC2046
turns_start $(vm_names)
ask run 1
ask wait 1
say "the first writes went from VM to VM $(since "$step_ms") after the start"
step_end

step_begin "$turns dependent writes in each of $chains chains, and $snapshots snapshots meanwhile"
say "each write goes to another VM than the one before it: a record appended to a file on ext4 or XFS"
say "and made durable, or a block of a raw disk, acknowledged; every file system is busy besides"
ask run $turns
names=()
printf '\n   %-8s %10s %10s %10s %10s\n' "" cut prepare harden total
for ((i = 1; i <= snapshots; i++)); do
	ask wait $((turns * i / (snapshots + 1)))
	snapshot s$i || { cat snapshot.err; die "snapshot create $collection@s$i"; }
	names+=("$collection@s$i")
	[ $((i % 10)) != 0 ] && [ $i != $snapshots ] || printf '   %-8s %10s %10s %10s %10s\n' s$i \
		"$(us "$(json cut_ns snapshot.json)")" "$(us "$(json prepare_ns snapshot.json)")" \
		"$(us "$(json harden_ns snapshot.json)")" "$(us "$(json total_ns snapshot.json)")"
done
ask wait $turns
ask times
read -r _ count median p99 longest <<<"$answer"
echo
say "$count writes; a turn took $median us (median), $p99 us (99 of 100), $longest us (longest)"
step_end

step_begin "kill -9 of the server, twice, under the same load"
for i in 1 2; do
	target=$((turns + 150 * i))
	ask run $target
	ask wait $((target - 100))
	serve_kill
	at=$(now_ms)
	sleep 0.3
	serve_start
	ask wait $target
	snapshot killed$i || { cat snapshot.err; die "snapshot create $collection@killed$i"; }
	names+=("$collection@killed$i")
	say "$(since "$at") after the kill, all VMs had gone on with their turns; snapshot killed$i"
done
turns=$target
step_end

step_begin "kill -9 of VM b in the middle of a snapshot; it boots again"
ask run $((turns + 300))
ask wait $((turns + 100))
{ sleep 0.01; kill -KILL "${vm_pid[b]}"; } &
snapshot cutoff 2>/dev/null || { cat snapshot.err; die "snapshot create $collection@cutoff"; }
names+=("$collection@cutoff")
vm_kill b
vm_start b
turns=$((turns + 300))
ask wait $turns
say "the snapshot went through; b came back with everything that it had acknowledged"
step_end

application=()
step_begin "Application consistency: the guests' agents freeze their file systems for the cut"
for i in 1 2 3; do
	ask run $((turns + 60))
	ask wait $((turns + 10))
	snapshot frozen$i --consistency=application || { cat snapshot.err; die "snapshot create $collection@frozen$i"; }
	application+=("$collection@frozen$i")
	say "frozen$i: $(grep -c '"frozen": true' snapshot.json) guests, for $(us "$(json freeze_ns snapshot.json)")"
	[ "$(json consistency snapshot.json)" = 1 ]
	check $? "frozen$i is application consistent"
	turns=$((turns + 60))
	ask wait $turns
done
step_end

step_begin "The VMs end in order"
# shellcheck disable=SC2046
turns_stop $(vm_names)
for ((c = 0; c < chains; c++)); do echo "now $c $turns $turns"; done >>marks
step_end

step_begin "$((${#names[@]} + ${#application[@]})) snapshots and the disks as they are now, read back over NBD and judged by a VM"
say "each file system is mounted there, which replays its journal, its files are read, then it is checked"
judge_all "${names[@]}" >lines
check $? "reading back ${#names[@]} snapshots"
grep -E 'FAILED|[05] ok|[@](killed|cutoff)' lines | sed 's/^/   /'
CHECK_BEFORE=1 judge_all "${application[@]}" now >lines
check $? "reading back ${application[*]} now"
sed 's/^/   /' lines
say "those of the frozen guests, and the disks now, were clean before any journal was replayed, too"
step_end

again=${names[${#names[@]} / 2]}
step_begin "$again boots again"
boot_again "$again"
check $? "$again boots again"
say "its VMs hold what the judge found, and go on with their turns from there"
step_end

step_begin "The server ends; the store itself: vmimg check"
serve_stop
"$vmimg" check store >log 2>&1
verdict=$?
[ "$verdict" != 3 ] || verdict=0 # leaks: what a killed server had not given back yet
check "$verdict" "vmimg check"
say "$(tail -n 1 log)"
step_end

step_begin "Verdict"
if [ ${#failures[@]} = 0 ]; then
	say "the order of $((chains * turns)) writes between guests of different VMs holds in each of" \
		"$((${#names[@]} + ${#application[@]})) snapshots"
	echo
	echo "${green}All checks passed:${off} $passed checks; $(since "$begin_ms")."
else
	echo "${red}FAILED:${off} ${#failures[@]} of $((passed + ${#failures[@]})) checks, in $(since "$begin_ms"):"
	printf '   %s\n' "${failures[@]}"
	exit 1
fi
