#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# image.sh DIR GUEST: makes in DIR what the VMs of the demo and of tests/guest boot from, once:
#   vmlinuz  Debian's cloud kernel
#   initrd   busybox, the modules for virtio, ext4 and XFS, GUEST (guest.c); finds the root disk by its label
#   root/    what a root disk holds: busybox, GUEST, the QEMU guest agent with its libraries, sbin/init
# The packages are downloaded and unpacked, not installed: this machine gets no other kernel, boot entry
# or service by it. GUEST may change: it is copied anew each time.
set -euo pipefail
umask 022

dir=$1 guest=$2 here=$(cd "$(dirname "$0")" && pwd)
modules='virtio_pci virtio_blk virtio_console virtio_scsi sd_mod ext4 xfs'
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
exec 9>"$dir/lock" && flock 9

sudo=()
[ "$(id -u)" = 0 ] || sudo=(sudo -n)

# The kernel is behind a package that only names the current one.
fetch() {
	local kernel
	kernel=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null |
		awk '$1 == "Depends:" && $2 ~ /^linux-image-[0-9]/ { print $2; exit }')
	[ -n "$kernel" ] && apt-get download -qq "$kernel" busybox-static qemu-guest-agent
}

unpack() {
	local deb
	rm -rf "$dir/new" && mkdir "$dir/new" && cd "$dir/new"
	# Lists gone stale, or not there yet, are cured by one update.
	fetch 2>log || { "${sudo[@]}" apt-get update -qq 2>>log && fetch 2>>log; } || {
		cat log >&2
		echo "image.sh: no kernel, busybox-static and qemu-guest-agent from apt" >&2
		return 1
	}
	for deb in *.deb; do dpkg -x "$deb" tree; done
	depmod -b tree "$(ls tree/lib/modules)"
}

# The modules and what they need, each after what it needs.
module_files() {
	local name
	for name in $modules; do
		modprobe -d tree -S "$(ls tree/lib/modules)" --show-depends "$name" |
			awk '$1 == "insmod" { print $2 }'
	done | awk '!seen[$0]++'
}

make_trees() {
	local file
	mkdir -p initrd/{bin,proc,sys,dev,mnt,modules} root/{bin,sbin,lib64,proc,sys,dev,run,data,load}
	cp tree/boot/vmlinuz-* vmlinuz
	for file in initrd root; do cp tree/bin/busybox $file/bin/; done
	module_files | while read -r file; do
		cp "$file" initrd/modules/
		echo "${file##*/}"
	done >initrd/modules/order
	cp "$here/initrd-init" initrd/init
	cp "$here/root-init" root/sbin/init
	cp tree/usr/sbin/qemu-ga root/sbin/
	ldd tree/usr/sbin/qemu-ga | awk '{ for (i = 1; i <= NF; i++) if ($i ~ /^\//) print $i }' |
		xargs -I{} cp -L {} root/lib64/
	chmod 755 initrd/init root/sbin/init root/sbin/qemu-ga root/bin/busybox initrd/bin/busybox
}

stamp=$(cat "$here/image.sh" "$here/initrd-init" "$here/root-init" | cksum)
if [ "$(cat "$dir/stamp" 2>/dev/null)" != "$stamp" ]; then
	rm -f "$dir/stamp"
	(unpack && make_trees)
	cd "$dir"
	rm -rf vmlinuz initrd.tree root initrd
	mv new/vmlinuz vmlinuz && mv new/initrd initrd.tree && mv new/root root
	rm -rf new
	echo "$stamp" >stamp
fi
cd "$dir"
if ! cmp -s "$guest" root/bin/guest || ! cmp -s "$guest" initrd.tree/bin/guest || [ ! -e initrd ]; then
	install -m 755 "$guest" root/bin/guest
	install -m 755 "$guest" initrd.tree/bin/guest
	(cd initrd.tree && find . | sort | cpio --quiet -o -H newc) | gzip -1 >initrd.new
	mv initrd.new initrd
fi
