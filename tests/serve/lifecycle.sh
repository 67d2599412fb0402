#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# A server's life: start, readiness, signals, a second server, what a dead one left, units.
top=$(cd "$(dirname "$0")/../.." && pwd)
. "$(dirname "$0")/common.bash"

v init "$VMIMG_STORE" && v vm create web && v disk create web/root --size=8M || die "no store"

serve
is "$(cat pid)" "$server" "the pid file names the server"
fails 1 "" "a store is served once" serve
kill -0 "$server" || die "the first server ended"
is "$(stat -c %a "$NBD_SOCKET")" 600 "the NBD socket is the owner's"
is "$(stat -c %a "$CONTROL_SOCKET")" 600 "the control socket too"
serve_stop "SIGTERM ends it with status 0"
[ ! -e pid ] || die "the pid file is left"
[ ! -e "$NBD_SOCKET" ] || die "the NBD socket is left"
[ ! -e "$CONTROL_SOCKET" ] || die "the control socket is left"
sound "the store is sound"

serve
serve_crash
[ -e "$NBD_SOCKET" ] || die "a killed server cleans nothing"
serve
serve_stop "sockets that a killed server left are replaced"

: >"$dir/file"
fails 1 "file" "a file in the socket's place is not" serve --nbd="$dir/file"
[ -e "$dir/file" ] || die "the file is gone"
fails 1 "at most" "a path too long for a socket" serve --nbd="$dir/$(printf 'x%.0s' {1..120})"
fails 1 "max request" "limits are checked" serve --max-request=1K
fails 2 "octal" "so is the mode" serve --socket-mode=9
fails 1 "HOST:PORT" "and the address" serve --nbd-tcp=nowhere

# What the service manager sees.
cat >notify.py <<'P'
import os, socket, subprocess, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind("notify.sock")
env = dict(os.environ, NOTIFY_SOCKET=os.path.abspath("notify.sock"))
p = subprocess.Popen([os.environ["VMIMG"], "serve", "--log=json"], env=env,
                     stderr=open("json.log", "w"))
s.settimeout(20)
seen = ""
def until(word):
    global seen
    while word not in seen:
        seen += s.recv(4096).decode() + "\n"
until("READY=1")
until("WATCHDOG=1")
p.terminate()
until("STOPPING=1")
sys.exit(p.wait())
P
echo "- the service manager is told: ready, alive, stopping"
python3 notify.py || die "not told"
echo "- each line of the log is JSON when asked for"
python3 -c 'import json,sys
for line in open("json.log"): assert json.loads(line)["message"]' || die "not JSON"

echo "- a socket that the service manager holds is used, and left"
systemd-socket-activate --fdname=nbd -l "$dir/held.sock" "$VMIMG" -s "$VMIMG_STORE" serve --pid-file="$dir/pid" 2>>serve.log &
server=$!
await 10 test -S held.sock
python3 - <<'P' || die "no NBD on it"
import socket
s = socket.socket(socket.AF_UNIX)
s.connect("held.sock")
s.settimeout(20)
assert s.recv(8, socket.MSG_WAITALL) == b"NBDMAGIC"
P
serve_stop "and it ends as ever"

units=$top/packaging/systemd
if command -v systemd-analyze >/dev/null; then
	mkdir units
	for unit in "$units"/*@*; do
		sed "s|/usr/local/bin/vmimg|$VMIMG|" "$unit" >"units/$(basename "$unit" | sed 's/@/@store/')"
	done
	echo "- the units are right"
	systemd-analyze verify --man=no units/* >out 2>err || die "a unit is wrong"
	[ ! -s err ] || die "a unit is doubtful"
fi
