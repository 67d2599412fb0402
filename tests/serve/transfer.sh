#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Exports, imports and verification on a served store: to directories and through pipes, cancelled, and
# while clients have the disks.
. "$(dirname "$0")/common.bash"

sum() { # STORE DISK
	"$VMIMG" -s "$1" disk read "$2" 2>>err | md5sum | cut -c 1-32
}

v init "$VMIMG_STORE" && v vm create web && v disk create web/root --size=48M &&
	v collection create prod web || die "no store"
serve
noise data 30000000
"$VMIMG" disk write web/root 0 <data || die "write"
ok "a snapshot" snapshot create prod@s1 --type=recovery
noise data2 200000
"$VMIMG" disk write web/root 1M <data2 || die "write"
ok "another" snapshot create prod@s2 --type=recovery

ok "the server exports to a directory, by a path that is not absolute" snapshot export prod@s1 full --output=json
has target "$dir/full" "made absolute"
ok "raw files" snapshot export prod@s2 raw --format=raw
"$VMIMG" disk read prod@s2/web/root >content || die "read"
same content raw/web/root.raw "what they hold"
"$VMIMG" snapshot export prod@s2 - --base=s1 >inc 2>err || die "an increment into a file"
"$VMIMG" snapshot export prod@s2 - --base=s1 -c 2>err | cat >inc-c || die "an increment into a pipe"
"$VMIMG" snapshot verify - <inc >out 2>err || die "it is whole"
"$VMIMG" snapshot verify ./inc-c >out 2>err || die "the compressed one too"
ok "a snapshot is verified" snapshot verify prod@s2

echo "- a reader that goes away ends the export"
"$VMIMG" snapshot export prod@s1 - 2>err | head -c 100000 >/dev/null
[ "${PIPESTATUS[0]}" = 1 ] || die "the export ended with ${PIPESTATUS[0]}"
echo "- so does standard output that takes all but the end"
room=$((($(stat -c %s full/s1.vmstream) - 100000) / 1024))
for _ in 1 2 3; do
	(trap '' XFSZ && ulimit -f $room && exec "$VMIMG" snapshot export prod@s1 - >short 2>err) &&
		die "a stream of $(stat -c %s short) bytes is no whole one"
	grep -q "standard output: File too large" err || die "it does not say why"
	rm short
done
fails 1 "there already|is there" "a directory that is there" snapshot export prod@s1 full

echo "- an interrupt cancels it, and nothing is left"
"$VMIMG" snapshot export prod@s1 slow --rate-limit=2M >out 2>err &
job=$!
await 20 test -e slow.part
kill -INT $job
wait $job
[ $? = 1 ] || die "it was not cancelled"
[ ! -e slow ] && [ ! -e slow.part ] || die "something is left"

ok "a job of its own kind" job list --output=json
grep -q '"job_type": 62' out || die "no job of type 62"
a=$VMIMG_STORE
want1=$(sum "$a" prod@s1/web/root)
want2=$(sum "$a" prod@s2/web/root)
ok "a collection comes back beside the other" snapshot import full --collection=copy
is "$(sum "$a" copy-web/root)" "$want1" "served at once"
serve_stop "the server ends"
ok "the store is sound" check "$VMIMG_STORE"

export VMIMG_STORE=$dir/b NBD_SOCKET=$dir/b/nbd.sock
ok "an empty store" init "$VMIMG_STORE"
serve
ok "the full one" snapshot import full
"$VMIMG" snapshot import - <inc >out 2>err || die "an increment from a file"
is "$(sum "$VMIMG_STORE" prod@s2/web/root)" "$want2" "it is there"
ok "gone back" snapshot delete prod@s2
serve_stop "the server ends"
export VMIMG_STORE=$dir/c NBD_SOCKET=$dir/c/nbd.sock
ok "one more" init "$VMIMG_STORE"
serve
cat full/s1.vmstream | "$VMIMG" snapshot import - >out 2>err || die "a full one through a pipe"
cat inc-c | "$VMIMG" snapshot import - >out 2>err || die "an increment through a pipe"
is "$(sum "$VMIMG_STORE" prod@s2/web/root)" "$want2" "both are there"
head -c 20000 inc | "$VMIMG" snapshot import - >out 2>err && die "a truncated one is taken"
is "$("$VMIMG" snapshot list --output=json | grep -c '"snapshot_id"')" 2 "and nothing else"
serve_stop "the server ends"
ok "the store is sound" check "$VMIMG_STORE"
echo "all well"
