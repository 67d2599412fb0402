# SPDX-License-Identifier: MIT
#
# vm.bash - VMs on the disks of a served store: sourced by demo-vm.sh and by the scripts of tests/guest.
# Everything happens in the directory $work, which is the current one: Unix sockets have short names.
# Whoever sources it sets vms and disks (below), calls vm_setup, and answers failures with die WHY.
#
#   vms    lines  VM TRANSPORT                 nbd or vhost
#   disks  lines  VM/DISK FILESYSTEM SIZE      ext4, xfs or raw; DISK is root, data or log
#
# A VM has a root disk to boot from, and a raw one called log; it may have a second file system, data.
export PATH=$PATH:/usr/sbin:/sbin
build=${VMIMG_BUILD:-$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)/build}
vmimg=${VMIMG:-$build/vmimg}
tools=$build/examples/demo-vm
image_sh=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/image.sh
images=$build/guest # what image.sh makes, kept from run to run
collection=vms
chains=2
# The kernel's check of its timer counts on time that an emulated processor may not get.
kernel_options='console=ttyS0 quiet panic=-1 no_timer_check'
boot_seconds=180 # for a boot, without KVM on a busy machine
declare -A vm_pid=()
server_pid= turns_pid=

# ---- set-up ---------------------------------------------------------------------------------------

# vm_setup: the directory, and what VMs boot from.
vm_setup() {
	local tool parent=${TMPDIR:-$build}
	for tool in "$vmimg" "$tools/guest" "$tools/turns" "$tools/verify" qemu-system-x86_64 qemu-img \
		mkfs.ext4 mkfs.xfs e2fsck xfs_repair cpio depmod; do
		command -v "$tool" >/dev/null || die "$tool is missing: run 'make deps' and 'make all examples'"
	done
	mkdir -p "$parent"
	parent=$(cd "$parent" && pwd)
	# The socket of a guest agent is named by its absolute path, of 107 bytes at most.
	[ ${#parent} -lt 70 ] || parent=/tmp
	work=$(mktemp -d "$parent/vmimg-vm.XXXXXX") && cd "$work" || die "no directory below $parent"
	bash "$image_sh" "$images" "$tools/guest" >log 2>&1 || { cat log; die "no kernel to boot"; }
	export VMIMG_STORE=store
	mkdir vhost
}

# vm_cleanup [KEEP]: ends all that was started; the directory stays when KEEP is not empty.
vm_cleanup() {
	local pid
	for pid in "${vm_pid[@]}" "$turns_pid" "$server_pid"; do
		[ -z "$pid" ] || kill -KILL "$pid" 2>/dev/null
	done
	wait 2>/dev/null
	[ -n "${work:-}" ] && [ -d "$work" ] || return 0
	# A server that was cut off left its journals in shared memory; opening the store takes them in.
	[ ! -d store ] || "$vmimg" tree >/dev/null 2>&1
	cd /
	if [ -n "${1:-}" ]; then echo "kept: $work"; else rm -rf "$work"; fi
}

# KVM where it is there and works, which only a kernel that runs can tell: this one ends at once, as it
# has no disk. The answer holds until the machine is booted again.
accelerator() {
	local boot answer=tcg
	boot=$(cat /proc/sys/kernel/random/boot_id)
	if [ "$(cut -d' ' -f1 "$images/accel" 2>/dev/null)" != "$boot" ]; then
		[ ! -w /dev/kvm ] || ! timeout -k 1 10 qemu-system-x86_64 -machine q35,accel=kvm -cpu max -m 256 \
			-nodefaults -no-reboot -display none -kernel "$images/vmlinuz" -append "$kernel_options" \
			>/dev/null 2>&1 </dev/null || answer=kvm:tcg
		echo "$boot $answer" >"$images/accel"
	fi
	cut -d' ' -f2 "$images/accel"
}

# ---- file systems ---------------------------------------------------------------------------------

# The prototype file that mkfs.xfs fills a file system from, without a mount.
prototype() { # TREE
	local f
	for f in "$1"/*; do
		if [ -d "$f" ]; then
			echo "${f##*/} d--755 0 0"
			prototype "$f"
			echo '$'
		elif [ -f "$f" ]; then
			echo "${f##*/} ---755 0 0 $f"
		fi
	done
}

make_image() { # DISK FILESYSTEM SIZE IMAGE
	local label=${1/\//-} tree=$images/root
	rm -f "$4" && truncate -s "$3" "$4" || return
	[ "${1#*/}" = root ] || { tree=empty && mkdir -p empty/load; }
	case $2 in
	ext4) mkfs.ext4 -q -F -b 4096 -m 0 -L "$label" -d "$tree" "$4" || return ;;
	xfs)
		{ printf '/dev/null\n0 0\nd--755 0 0\n'; prototype "$tree"; echo '$'; } >prototype
		mkfs.xfs -q -L "$label" -p prototype "$4" || return
		;;
	raw) printf 'vmimg demo: a raw disk\n' | dd of="$4" conv=notrunc status=none || return ;;
	esac
	fallocate -d "$4"
}

fsck_image() { # FILESYSTEM IMAGE
	case $1 in
	ext4) e2fsck -fn "$2" ;;
	xfs) xfs_repair -n -f "$2" ;;
	esac
}

# ---- the server -----------------------------------------------------------------------------------

serve_start() {
	local tries=0
	rm -f serve.pid
	"$vmimg" serve --vhost-user=vhost --pid-file=serve.pid >>serve.log 2>&1 </dev/null &
	server_pid=$!
	until [ -s serve.pid ]; do
		tries=$((tries + 1))
		[ $tries -lt 600 ] && kill -0 "$server_pid" 2>/dev/null || { tail -n 20 serve.log; die "vmimg serve"; }
		sleep 0.1
	done
}

serve_kill() { # by force
	kill -KILL "$server_pid"
	wait "$server_pid" 2>/dev/null
	server_pid=
}

serve_stop() { # in order
	local pid=$server_pid
	kill -TERM "$pid" && wait "$pid"
	local status=$?
	server_pid=
	[ $status = 0 ] || { tail -n 20 serve.log; die "vmimg serve ended with status $status"; }
}

# ---- VMs ------------------------------------------------------------------------------------------

vm_names() { awk '{ print $1 }' <<<"$vms" | xargs; }
vm_transport() { awk -v vm="$1" '$1 == vm { print $2 }' <<<"$vms"; }
disk_names() { awk 'NF { print $1 }' <<<"$disks" | xargs; }
disk_fs() { awk -v disk="$1" '$1 == disk { print $2 }' <<<"$disks"; }

qemu=()
qemu_begin() { # NAME: the options every VM has
	qemu=(qemu-system-x86_64 -name "$1" -machine "q35,accel=$(accelerator),memory-backend=ram"
		-object memory-backend-memfd,id=ram,size=256M,share=on -m 256 -cpu max -smp 1
		-nodefaults -no-user-config -no-reboot -display none -chardev "file,id=console,path=$1.console,append=on"
		-serial chardev:console -kernel "$images/vmlinuz" -initrd "$images/initrd"
		-device virtio-serial-pci)
}

# vm_start VM [SNAPSHOT]: boots it from its disks, or from the snapshot's with what it writes thrown away.
vm_start() {
	local vm=$1 from=${2:+$2/} name=$1${2:+-again} disk node transport
	transport=$(vm_transport "$vm")
	rm -f "$name.turns" "$name.agent"
	qemu_begin "$name"
	qemu+=(-append "$kernel_options vm=$vm"
		-chardev "socket,id=turns,path=$name.turns,server=on,wait=off"
		-device virtserialport,chardev=turns,name=vmimg.turns
		-chardev "socket,id=agent,path=$name.agent,server=on,wait=off"
		-device virtserialport,chardev=agent,name=org.qemu.guest_agent.0)
	for disk in $(disk_names); do
		[ "${disk%/*}" = "$vm" ] || continue
		node=${disk#*/}
		if [ -n "$from" ]; then
			qemu-img create -q -f qcow2 -F raw -b "nbd+unix:///$from$disk?socket=$work/store/nbd.sock" \
				"$name.$node" || die "no overlay over $from$disk"
			qemu+=(-drive "if=none,id=$node,format=qcow2,file=$name.$node"
				-device "virtio-blk-pci,drive=$node")
		elif [ "$transport" = vhost ]; then
			qemu+=(-chardev "socket,id=$node,path=vhost/$vm.$node.sock,reconnect=1"
				-device "vhost-user-blk-pci,chardev=$node,num-queues=1")
		else
			qemu+=(-blockdev "driver=nbd,node-name=$node,server.type=unix,server.path=store/nbd.sock,export=$disk,reconnect-delay=120"
				-device "virtio-blk-pci,drive=$node")
		fi
	done
	"${qemu[@]}" >>"$name.qemu" 2>&1 </dev/null &
	vm_pid[$name]=$!
}

vm_kill() { # NAME: as if its host had lost power
	kill -KILL "${vm_pid[$1]}" 2>/dev/null
	wait "${vm_pid[$1]}" 2>/dev/null
	unset "vm_pid[$1]"
}

vm_wait() { # NAME: until it has ended by itself
	wait "${vm_pid[$1]}" || { tail -n 5 "$1.qemu" "$1.console"; die "VM $1: QEMU ended with status $?"; }
	unset "vm_pid[$1]"
}

# ---- turns ----------------------------------------------------------------------------------------

turns_start() { # [--resume] NAME...: the VMs that take part
	local name arguments=()
	for name; do
		case $name in
		-*) arguments+=("$name") ;;
		*) arguments+=("$name=$name.turns") ;;
		esac
	done
	coproc TURNS { exec "$tools/turns" --chains=$chains --idle=$boot_seconds "${arguments[@]}" 2>>turns.log; }
	turns_pid=$TURNS_PID
}

ask() { # COMMAND: the answer is left in $answer
	echo "$*" >&"${TURNS[1]}" || die "turns has ended: $(tail -n 1 turns.log)"
	read -r answer <&"${TURNS[0]}" || die "turns: no answer to '$*': $(tail -n 1 turns.log)"
	case $answer in
	failed*)
		tail -n 40 ./*.console ./*.qemu turns.log serve.log
		die "$answer"
		;;
	esac
}

# Ends the guests that take turns, in order.
turns_stop() { # NAME...
	local name
	ask stop
	for name; do vm_wait "$name"; done
	wait "$turns_pid" 2>/dev/null
	turns_pid=
}

# snapshot NAME OPTION...: one of the collection while the guests run, with its marks. Output in
# snapshot.json; returns the command's status.
snapshot() {
	local name=$1 acked issued status c
	shift
	ask mark
	read -ra acked <<<"${answer#mark }"
	"$vmimg" snapshot create "$collection@$name" --output=json "$@" >snapshot.json 2>snapshot.err
	status=$?
	ask mark
	read -ra issued <<<"${answer#mark }"
	for ((c = 0; c < chains; c++)); do
		echo "$collection@$name $c ${acked[2 * c]} ${issued[2 * c + 1]}"
	done >>marks
	return $status
}

json() { # KEY FILE: the member's first value, without quotes
	sed -n "s/^ *\"$1\": \"\{0,1\}\(.*[^\",]\)\"\{0,1\},\{0,1\}\$/\1/p" "$2" | head -n 1
}

# ---- reading back ---------------------------------------------------------------------------------

# Copies a disk of a snapshot, or of a VM when SNAPSHOT is "now", out of the server.
copy_disk() { # SNAPSHOT DISK IMAGE
	local export=$1/$2
	[ "$1" != now ] || export=$2
	timeout -k 5 $boot_seconds qemu-img convert --image-opts -O raw \
		"driver=nbd,server.type=unix,server.path=store/nbd.sock,export=$export" "$3"
}

# boot_again SNAPSHOT [own]: all VMs boot from its disks, or from their own where these hold the same, and
# take turns, going on from what it holds, which must be what the judge found (the line of the snapshot in
# the file "judged").
boot_again() {
	local name names=() found highest c
	for name in $(vm_names); do
		if [ "${2:-}" = own ]; then
			vm_start "$name"
			names+=("$name")
		else
			vm_start "$name" "$1"
			names+=("$name-again")
		fi
	done
	turns_start --resume "${names[@]}"
	ask wait 1
	ask mark
	read -ra found <<<"${answer#mark }"
	highest=$(grep "^$1 ok:" judged | grep -o ' 1\.\.[0-9]*' | cut -d. -f3 | xargs)
	for ((c = 0; c < chains; c++)); do
		[ "${found[2 * c]}" = "$(cut -d' ' -f$((c + 1)) <<<"$highest")" ] ||
			die "$1: booted, chain $c goes up to ${found[2 * c]}; the judge said $highest"
	done
	ask run $((found[0] + 100))
	ask wait $((found[0] + 100))
	turns_stop "${names[@]}"
}

# judge SNAPSHOT...: copies all their disks out and lets a VM that knows nothing of the others mount them,
# which replays their journals, and read them; then the file systems are checked. Prints one line for
# each snapshot that is in order, which the file "judged" collects, and FAILED lines; the status says
# whether all were. CHECK_BEFORE=1: the file systems must be clean before, too, with no journal to replay.
judge() (
	at=$(mktemp -d judge.XXXXXX) && trap 'rm -rf "$at"' EXIT || exit 1
	index=0 mounted=0 status=0
	qemu_begin "$at"
	qemu+=(-device virtio-scsi-pci,id=scsi -chardev "file,id=turns,path=$at/found"
		-device virtserialport,chardev=turns,name=vmimg.turns)
	for name; do
		for disk in $(disk_names); do
			image=$at/$index fs=$(disk_fs "$disk")
			copy_disk "$name" "$disk" "$image" 2>"$at/log" || { cat "$at/log"; die "reading $name/$disk"; }
			[ -z "${CHECK_BEFORE:-}" ] || check_before "$name/$disk" "$fs" "$image" || status=1
			if [ "$fs" = raw ]; then
				echo "$index $name $disk $image"
			else
				mounted=$((mounted + 1))
				qemu+=(-drive "if=none,id=d$index,format=raw,file=$image,cache=unsafe"
					-device "scsi-hd,bus=scsi.0,drive=d$index,scsi-id=$index")
				echo "$index $name $disk"
			fi >>"$at/plan"
			index=$((index + 1))
		done
	done
	qemu+=(-append "$kernel_options judge=$mounted")
	# An emulated machine may hang at its start on a busy host; this one has copies only, and is started anew.
	for attempt in 1 2; do
		timeout -k 5 $((60 + mounted * 10)) "${qemu[@]}" >"$at/qemu" 2>&1 </dev/null
		! grep -qx "judged $mounted" "$at/found" || break
		echo "the VM that judges has not ended its work, attempt $attempt: $(tail -n 1 "$at.console")"
	done
	grep -qx "judged $mounted" "$at/found" || {
		tail -n 5 "$at.console" "$at/qemu"
		die "the VM that judges has not seen all disks"
	}
	"$tools/verify" marks "$at/plan" "$at/found" | tee -a judged
	[ "${PIPESTATUS[0]}" = 0 ] || status=1
	while read -r index name disk image; do
		[ -z "$image" ] || continue # raw
		fsck_image "$(disk_fs "$disk")" "$at/$index" >"$at/log" 2>&1 || {
			tail -n 5 "$at/log"
			echo "$name FAILED: the file system of $disk"
			status=1
		}
	done <"$at/plan"
	exit $status
)

# judge_all SNAPSHOT...: any number of them, some at a time.
judge_all() {
	local first batch=8 jobs pids=() pid status=0
	jobs=$(nproc)
	[ "$jobs" -le 4 ] || jobs=4
	rm -f lines.*
	for ((first = 1; first <= $#; first += batch)); do
		judge "${@:first:batch}" >"lines.$(printf %04d $first)" &
		pids+=($!)
		[ ${#pids[@]} -ge "$jobs" ] || continue
		wait "${pids[0]}" || status=1
		pids=("${pids[@]:1}")
	done
	for pid in "${pids[@]}"; do wait "$pid" || status=1; done
	cat lines.*
	return $status
}

# A file system of a frozen guest. XFS keeps its log marked as in use when it is frozen, so that the next
# mount deals with files that are open and have no name; and that mount counts free space and inodes anew.
check_before() { # WHAT FILESYSTEM IMAGE
	case $2 in
	ext4)
		if ! e2fsck -fn "$3" >"$3.log" 2>&1; then
			tail -n 5 "$3.log"
		elif dumpe2fs -h "$3" 2>&1 | grep needs_recovery; then
			echo "there is a journal to replay"
		else
			return 0
		fi
		;;
	xfs)
		xfs_repair -n -f "$3" >"$3.log" 2>&1
		if ! grep -q '^No modify flag set, skipping filesystem flush' "$3.log"; then
			tail -n 5 "$3.log"
		elif ! grep -vE -e '^Phase [0-9]+ - ' -e '^        - ' -e '^the image and the host' \
			-e '^(No modify flag set|Cannot get host filesystem|Repair may fail)' \
			-e '^ALERT: The filesystem has valuable metadata changes in a log' \
			-e '^ignored because the -n option' -e '^which may be resolved by first mounting' \
			-e '^sb_(fdblocks|ifree|icount) [0-9]+, counted [0-9]+$' "$3.log"; then
			return 0
		fi
		;;
	raw) return 0 ;;
	esac
	echo "$1 FAILED: not clean before its journal is replayed"
	return 1
}
