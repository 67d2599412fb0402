# SPDX-License-Identifier: MIT
#
# Sourced first by scripts that fill a disk: they begin anew in a mount namespace of their own, where
# begin_on makes a small ext4 with a store on it.
if [ -z "${VMIMG_SMALL:-}" ]; then
	unshare -m true 2>/dev/null || { echo "no mount namespace can be made: skipped"; exit 77; }
	VMIMG_SMALL=1 exec unshare -m bash "$0"
fi
. "$(dirname "$0")/common.bash"
. "$tests/serve/client.bash"

begin_on() { # BYTES BYTES: of the file system, and of the disk web/root of collection prod; served
	trap '[ -z "$server" ] || kill -KILL "$server" 2>/dev/null; umount -l "$dir/fs" 2>/dev/null; rm -rf "$dir"' EXIT
	truncate -s "$1" fs.img && mkfs.ext4 -q -m 0 fs.img && mkdir fs || die "no file system"
	mount -o loop fs.img fs 2>/dev/null || { echo "nothing can be mounted: skipped"; exit 77; }
	export VMIMG_STORE=$dir/fs/store
	export NBD_SOCKET=$VMIMG_STORE/nbd.sock CONTROL_SOCKET=$VMIMG_STORE/control.sock
	v init "$VMIMG_STORE" && v vm create web && v disk create web/root --size="$2" || die "no store"
	v collection create prod web || die "collection"
	serve
}
