#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Reference points of a served store: with a guest that never stops writing, a reader of the snapshot that is
# to be converted (CP-16), events (RP-26), and the server killed while it converts (RP-7).
. "$(dirname "$0")/common.bash"
# Debian's module is the system's Python's.
python3 -c "import nbd" 2>/dev/null || PATH=/usr/bin:$PATH

init
v vm create web && v disk create web/root --size=32M && v collection create prod web || die "no store"
serve

# Writes block after block, each once and none twice, and logs each when it is acknowledged.
cat >guest.py <<'P'
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
log = open("written", "a")
for i in range(4096):
    at = i * 2654435761 % 8192 * 4096
    try:
        h.pwrite(bytes([1 + i % 250]) * 4096, at)
    except nbd.Error:
        break
    log.write("%d\n" % at)
    log.flush()
P
"$VMIMG" events >events 2>events.err &
watcher=$!
python3 guest.py "$(nbd_uri web/root)" 2>guest.err &
guest=$!
await 20 test -s written || die "the guest does not write: $(cat guest.err)"

ok "a recovery snapshot under load" snapshot create prod@b1 --type=recovery
cat >reader.py <<'P'
import nbd, sys, os, time
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pread(4096, 0)
open("reading", "w").close()
while not os.path.exists("enough"):
    time.sleep(0.02)
h.shutdown()
open("gone", "w").close()
P
python3 reader.py "$(nbd_uri prod@b1/web/root)" &
reader=$!
await 20 test -e reading || die "nobody reads"
fails 1 '"code": 5' "5: somebody reads the snapshot" refpoint convert prod@b1 --output=json
touch enough
wait $reader
await 10 "$VMIMG" refpoint convert prod@b1 || die "converted when the reader has gone"
echo "- converted when the reader has gone"
after=$(wc -l <written)
await 20 eval '[ "$(wc -l <written)" -gt '$((after + 20))' ]' || die "the guest waits"
ok "a second cycle, by the way" refpoint create 'prod#p2'
seen() { # PATTERN
	grep -qE -- "$1" events
}
await 10 seen '"event":"refpoint".*"prod#b1"|"prod#b1".*"event":"refpoint"' || die "no event: $(cat events)"
await 10 seen '"change":"deleted".*"prod@b1"|"prod@b1".*"change":"deleted"' || die "the snapshot's end is not told"
echo "- both are told"
kill -INT $watcher 2>/dev/null
wait $watcher

# Killed at some time of a conversion: one of the two is there, and says what has changed.
ok "one more snapshot" snapshot create prod@b2 --type=recovery
before=$(wc -l <written)
sleep 0.3
"$VMIMG" refpoint convert prod@b2 >/dev/null 2>&1 &
converting=$!
sleep "0.00$((RANDOM % 9))"
serve_crash
wait $converting
wait $guest
serve
points=0
v refpoint show 'prod#b2' && points=1
v snapshot show prod@b2 && points=$((points + 2))
[ $points = 1 ] || [ $points = 2 ] || die "neither or both are there: $points"
echo "- killed: $([ $points = 1 ] && echo the point || echo the snapshot) is there"
from=$([ $points = 1 ] && echo 'prod#b2' || echo prod@b2)
ok "what has changed since" snapshot diff "$from" --output=json
tail -n +$((before + 1)) written >late
python3 - late out <<'P' || die "a block that was written is not told"
import json, sys
changed = json.load(open(sys.argv[2]))["disks"][0]["changed"]
for at in map(int, open(sys.argv[1])):
    assert any(c["start"] <= at < c["start"] + c["length"] for c in changed), at
P
echo "- every acknowledged write is in it ($(wc -l <late))"
ok "and since the first" snapshot diff 'prod#b1' --output=json
serve_stop "the server ends"
sound "the store is sound"
