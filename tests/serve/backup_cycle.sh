#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# A real backup cycle on a live collection: a full export, then twenty rounds of load, recovery snapshot,
# incremental export against the last reference point, conversion of the snapshot, and the old point
# destroyed. A restore into an empty store must equal every snapshot bit by bit, as NBD clients read it in
# its round. The file system that the load keeps on one disk must be clean in each, and is mounted: it shows
# the files that had been written by that round, and no others. Mounted is by the kernel, for root with loop
# devices, and by FUSE; where FUSE does not work all else is still looked at, and the test counts as skipped.
# tests/guest/backup.sh boots what it restores.
. "$(dirname "$0")/common.bash"
ROUNDS=${ROUNDS:-20}
looked=$(printf "%s\n" 0 1 $((ROUNDS / 2)) "$ROUNDS" | sort -nu) # at exported and served, too
# The first python3 may be one that Debian's module is not for.
python3 -c "import nbd" 2>/dev/null || PATH=/usr/bin:$PATH
FS_MB=24

sum() { # EXPORT: as an NBD client reads it
	nbdcopy "$(nbd_uri "$1")" - 2>>err | md5sum | cut -c 1-32
}

# A guest's file system: changed by debugfs in a copy, and what differs is written to the disk over NBD.
cat >sync.py <<'P'
import nbd, sys
uri, path = sys.argv[1:]
h = nbd.NBD()
h.connect_uri(uri)
size, at, step, wrote = h.get_size(), 0, 65536, 0
with open(path, "rb") as f:
    while at < size:
        want = f.read(min(step, size - at))
        have = h.pread(len(want), at)
        if want != have:
            for i in range(0, len(want), 4096):
                if want[i:i + 4096] != have[i:i + 4096]:
                    h.pwrite(want[i:i + 4096], at + i)
                    wrote += 1
        at += len(want)
h.flush()
h.shutdown()
print(wrote)
P

sync_fs() {
	python3 sync.py "$(nbd_uri web/fs)" fs.img >wrote || die "the file system does not reach its disk"
}

listing() { # DIRECTORY: its directories, and its files with their checksums
	(cd "$1" && find . -name lost+found -prune -o -type d -print -o -type f -exec sha256sum {} +) | sort -k 2
}

# A file and a directory more, a file that is gone two rounds later, and one that grows; the same in "tree",
# and what that holds then in tree.ROUND.
change_fs() { # ROUND
	noise "tree/round$1" $((20000 + $1 * 3001))
	noise "tree/passing$1" $((9000 + $1 * 500))
	echo "round $1: $(sha256sum <"tree/round$1")" >>tree/log
	mkdir "tree/dir$1"
	noise "tree/dir$1/file" 5000
	{
		echo "write tree/round$1 round$1"
		echo "write tree/passing$1 passing$1"
		[ "$1" = 1 ] || echo "rm log"
		echo "write tree/log log"
		echo "mkdir dir$1"
		echo "write tree/dir$1/file dir$1/file"
		[ "$1" -lt 3 ] || echo "rm passing$(($1 - 2))"
	} >commands
	[ "$1" -lt 3 ] || rm "tree/passing$(($1 - 2))"
	debugfs -w -f commands fs.img >debugfs.log 2>&1 || die "debugfs"
	listing tree >"tree.$1"
	sync_fs
}

# --- mounts
ways= fuse=
mount_by() { # loop|fuse IMAGE
	case $1 in
	loop) [ "$(id -u)" = 0 ] && mount -t ext4 -o loop,ro "$2" mnt ;;
	fuse) fuse2fs -o ro "$2" mnt ;;
	esac >mount.log 2>&1
}

unmount() { # DIRECTORY
	! mountpoint -q "$1" || umount "$1" 2>/dev/null || fusermount -u "$1"
}

find_ways() {
	local way
	mkdir -p mnt fuse
	for way in loop fuse; do
		! mount_by $way fs.img || { unmount mnt && ways+=" $way"; }
	done
	echo "- file systems are mounted by:${ways:- nothing}"
}

# In every way there is the file system shows what it held in that round.
shows() { # ROUND IMAGE CLAIM
	local way
	for way in $ways; do
		mount_by "$way" "$2" || { cp mount.log err; die "$3: $way does not mount it"; }
		listing mnt >found
		unmount mnt || die "$3: cannot be unmounted"
		diff "tree.$1" found >err || die "$3: mounted by $way it holds something else"
		[ "$1" = 0 ] || [ "$(grep -c '/round' found)" = "$1" ] || die "$3: not as many files as rounds"
	done
}

# The same through a file that NBD is behind.
shows_served() { # ROUND CLAIM SERVER...
	local round=$1 claim=$2
	shift 2
	case $ways in *fuse*) ;; *) return ;; esac
	nbdfuse -r fuse "$@" >nbdfuse.log 2>&1 &
	fuse=$!
	await 10 mountpoint -q fuse || { cp nbdfuse.log err; die "$claim: nbdfuse"; }
	shows "$round" fuse/nbd "$claim"
	await 10 unmount fuse || die "$claim: nbdfuse cannot be unmounted"
	wait $fuse
	fuse=
	echo "- $claim"
}

load() { # DISK SEED: random writes of a guest until stopped
	"$VMIMG" bench "$(nbd_uri "$1")" --rw=randwrite --bs=4k --iodepth=8 --runtime=600 \
		--norandommap --fsync=64 >>load.log 2>&1 &
	loads="$loads $!"
}

stop_loads() {
	kill -INT $loads 2>/dev/null
	wait $loads 2>/dev/null
	loads=
}

v init "$VMIMG_STORE" && v vm create web && v vm create db && v disk create web/fs --size=${FS_MB}M &&
	v disk create web/data --size=16M && v disk create db/log --size=8M --independent &&
	v disk create db/root --size=12M && v collection create prod web db || die "no store"
truncate -s ${FS_MB}M fs.img
mke2fs -q -F -t ext4 fs.img || die "mke2fs"
mkdir tree
listing tree >tree.0
find_ways
serve
loads=
sync_fs
load web/data
load db/root
leave() {
	[ -z "$loads$server" ] || kill -KILL $loads $server 2>/dev/null
	unmount mnt
	unmount fuse
	[ -z "$fuse" ] || wait $fuse
	rm -rf "$dir"
}
trap leave EXIT

disks="web/fs web/data db/root"
skip='{"IgnoreNonSnapshottableDisks": true}'
note() { # ROUND
	for d in $disks; do
		echo "$1 $d $(sum "prod@r$1/$d")" >>sums
	done
}

ok "a recovery snapshot of the live collection" snapshot create prod@r0 --type=recovery --settings="$skip"
note 0
ok "a full export while guests write" snapshot export prod@r0 "$dir/full"
ok "the snapshot becomes a reference point" refpoint convert prod@r0 prod#p0
for ((i = 1; i <= ROUNDS; i++)); do
	change_fs "$i"
	ok "round $i: a recovery snapshot" snapshot create "prod@r$i" --type=recovery \
		--settings="$skip"
	note "$i"
	compress=
	((i % 3)) || compress=-c
	ok "round $i: what changed since the last one" \
		snapshot export "prod@r$i" "$dir/inc$i" --base="prod#p$((i - 1))" $compress --output=json
	echo "  $(get bytes) bytes"
	[ "$(get bytes)" -lt $((52 << 20)) ] || die "everything counts as changed"
	ok "round $i: converted" refpoint convert "prod@r$i" "prod#p$i"
	[ "$i" != 3 ] || ok "a point is exported" refpoint export prod#p3 "$dir/point" --base='#p2'
	ok "round $i: the old point goes" refpoint delete "prod#p$((i - 1))"
done
stop_loads
python3 - <<'P' || die "the exported point says something else"
import json
point = json.load(open("point/refpoint.json"))
assert point["refpoint"]["refpoint"] == "prod#p3" and point["refpoint"]["disks"] == 3
changes = point["changes"]
assert changes["from"] == "prod#p2" and changes["to"] == "prod#p3", changes
assert all(d["changed"] for d in changes["disks"])
P
is "$("$VMIMG" snapshot list --output=json | grep -c '"snapshot_id"')" 0 "no snapshot is left"
serve_stop "the server ends"
ok "the store is sound" check "$VMIMG_STORE"

# --- the restore
export VMIMG_STORE=$dir/restored
ok "an empty store" init "$VMIMG_STORE"
ok "the full one" snapshot import full
for ((i = 1; i <= ROUNDS; i++)); do
	ok "the increment of round $i" snapshot import "inc$i"
done
while read -r round d want; do
	got=$("$VMIMG" disk read "prod@r$round/$d" 2>>err | md5sum | cut -c 1-32)
	[ "$got" = "$want" ] || die "prod@r$round/$d is not what it was"
done <sums
echo "- every snapshot is bit by bit what it was"
is "$(wc -l <sums)" $((3 * (ROUNDS + 1))) "all of them were looked at"
for ((i = 0; i <= ROUNDS; i++)); do
	"$VMIMG" disk read "prod@r$i/web/fs" >fs.out 2>>err || die "read"
	e2fsck -fn fs.out >fsck.log 2>&1 || { cat fsck.log; die "the file system of round $i is not clean"; }
	shows "$i" fs.out "round $i"
done
echo "- every file system is clean${ways:+, and mounted it holds the files of its round}"
for i in $looked; do
	ok "round $i: exported as raw" snapshot export "prod@r$i" "$dir/raw$i" --format=raw
	shows "$i" "raw$i/web/fs.raw" "round $i: its raw file is mounted"
	ok "round $i: exported as qcow2" snapshot export "prod@r$i" "$dir/qcow$i" --format=qcow2 -c
	shows_served "$i" "round $i: its qcow2 file is mounted" [ qemu-nbd -r -f qcow2 "qcow$i/web/fs.qcow2" ]
done
ok "every block is verified" snapshot verify "prod@r$ROUNDS"
ok "the restored store is sound" check "$VMIMG_STORE"
fails 1 "already|not here|writes" "an increment goes in once" snapshot import inc1

# --- what must not be taken for the next one
export VMIMG_STORE=$dir/other
ok "one more store" init "$VMIMG_STORE"
ok "the full one" snapshot import full
fails 1 "expected the snapshot" "an increment that is not the next" snapshot import inc2
ok "the one that is" snapshot import inc1

# --- the restored collection lives
export VMIMG_STORE=$dir/restored NBD_SOCKET=$dir/restored/nbd.sock
serve
is "$(sum web/fs)" "$(awk -v r="$ROUNDS" '$1 == r && $2 == "web/fs" {print $3}' sums)" "its head is the last snapshot"
for i in $looked; do
	shows_served "$i" "the snapshot of round $i is mounted over NBD" "$(nbd_uri "prod@r$i/web/fs")"
done
shows_served "$ROUNDS" "and so is the head" "$(nbd_uri web/fs)"
ok "and it is snapshotted anew" snapshot create prod@new
serve_stop "the server ends"
case $ways in
*fuse*) echo "all well" ;;
*)
	echo "all well, but nothing is mounted over NBD: no /dev/fuse, or no fuse2fs: skipped"
	exit 77
	;;
esac
