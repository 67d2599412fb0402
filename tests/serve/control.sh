#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# The control socket: who may use it, what it answers to good and to hostile lines, and how it ends.
. "$(dirname "$0")/common.bash"

# talk [-n] TEXT...: sends each text, with a line feed unless -n, and prints what comes back until the
# server closes or has nothing more to say.
talk() {
	python3 -c '
import socket, sys
end = b"\n"
texts = sys.argv[2:]
if texts and texts[0] == "-n":
    end, texts = b"", texts[1:]
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
try:
    for t in texts:
        s.sendall(t.encode("utf-8", "surrogateescape") + end)
    s.shutdown(socket.SHUT_WR)
except OSError:
    pass
s.settimeout(20)
try:
    while True:
        d = s.recv(65536)
        if not d:
            break
        sys.stdout.buffer.write(d)
except ConnectionResetError:
    pass
' "$CONTROL_SOCKET" "$@" >out 2>err
}

says() { # PATTERN CLAIM
	echo "- $2"
	grep -qE -- "$1" out || die "$2: no '$1'"
}

lines() { # N CLAIM
	is "$(wc -l <out)" "$1" "$2"
}

init
serve
is "$(stat -c %a "$CONTROL_SOCKET")" 600 "the socket's mode is 0600 (CP-9)"

talk '{"id": 1, "method": "Version"}'
says '^\{"id":1,"result":\{"Version":"[0-9.]+"\}\}$' "a request is answered"
talk '{"id": 1, "method": "Version"}' '' '{"id": "b", "method": "DefineVirtualMachine", "params": {"Name": "m"}}' \
	'{"id": 3, "method": "CreateDisk", "params": {"Disk": "m/d", "Size": 4194304}}'
lines 3 "several requests of one connection are, an empty line is not (CP-10)"
is "$(sed -n 's/^{"id":\([^,]*\),"result".*/\1/p' out | tr '\n' ' ')" '1 "b" 3 ' "in order"
talk '{"id": 1, "method": "Server"}'
says '"Pid":'"$server"'[,}]' "the server tells who it is"
talk '{"id": 1, "method": "Metrics"}' '{"id": 2, "method": "Metrics", "params": {"Format": "prometheus"}}'
says '"id":1,"result":\{.*"store"' "metrics as JSON"
says '"id":2,"result":\{"Text":"# ' "and for Prometheus"
talk '{"id": 1, "method": "Metrics", "params": {"Format": "xml"}}' \
	'{"id": 1, "method": "Subscribe", "params": {"x": 1}}' '{"id": 1, "method": "Server", "extra": 1}'
is "$(grep -c '"field":"params.Format"\|"field":"params.x"\|"field":"extra"' out)" 3 "its own methods are strict too"

# What is no request (CP-4, CP-11).
talk 'x' '{' '[]' '{"method": 1}' '{"id": 9, "method": "Nothing"}' '{"method": "Version", "params": {"x": 1}}' \
	$'\xff\xfe' '{"id": 7, "method": "Version"}'
lines 8 "every line has its answer, whatever it was"
is "$(grep -c '"error":{"code":"EINVAL"' out)" 7 "an error for those that are no request"
says '^\{"id":7,"result"' "and the connection goes on"
says '"id":9,.*"field":"method"' "the field is named"
says '"field":"params.x"' "also in the params"
printf 'a\0b\n{"id": 7, "method": "Version"}\n' >hostile
python3 - "$CONTROL_SOCKET" >out 2>err <<'END' || die "hostile"
import os, random, socket, sys, time
path = sys.argv[1]
def connect():
    s = socket.socket(socket.AF_UNIX); s.settimeout(60); s.connect(path); return s
def read_all(s):
    got = b""
    try:
        while True:
            d = s.recv(65536)
            if not d: return got
            got += d
    except ConnectionResetError:
        return got
def line(s):
    got = b""
    while not got.endswith(b"\n"):
        d = s.recv(1)
        if not d: return got
        got += d
    return got
def claim(what, ok):
    print("-", what)
    if not ok: print("FAILED:", what); sys.exit(1)

s = connect(); s.sendall(open("hostile", "rb").read()); s.shutdown(socket.SHUT_WR)
got = read_all(s).split(b"\n")
claim("a NUL byte is refused, the next line is not", b"NUL" in got[0] and b'"id":7,"result"' in got[1])

ok = b'{"id": "' + b"x" * (65536 - 33) + b'", "method": "Version"}'
s = connect(); s.sendall(ok + b"\n"); claim("64 KiB are a line", b'"result"' in line(s)); s.close()
s = connect()
try:
    s.sendall(b"x" * (1 << 20) + b"\n")
except OSError:
    pass
got = read_all(s)
claim("1 MiB is not, and closes", got.count(b"\n") == 1 and b"longer" in got)

rnd = random.Random(1)
for n in range(200):
    s = connect()
    try:
        s.sendall(bytes(rnd.choice(b'{}[]":,\\ \nabcdefmethodparams0123456789\x00\xff') for _ in range(rnd.randrange(3000))))
        if n % 3 == 0: s.settimeout(0.05); s.recv(10)
    except OSError:
        pass
    s.close()
claim("garbage and half lines hurt nobody", True)

s = connect()
for b in b'{"id": 1, "method": "Version"}\n': s.sendall(bytes([b]))
claim("a line may come byte by byte", b'"result"' in line(s))

busy = []
refused = 0
for n in range(100):
    c = connect(); busy.append(c)
    try:
        c.sendall(b'{"id": 1, "method": "Version"}\n')
    except OSError:
        pass
    refused += b"EBUSY" in line(c)
claim("64 of 100 connections are served, the others are told (CP-12): %d" % refused, refused == 100 - 63)
for c in busy: c.close()
for _ in range(200):
    s2 = connect(); s2.sendall(b'{"id": 1, "method": "Version"}\n')
    if b"result" in line(s2): break
    s2.close(); time.sleep(0.05)
else:
    claim("and afterwards there is room again", False)
claim("and afterwards there is room again", True)
END
cat out

if [ "$(id -u)" = 0 ] && setpriv --reuid=65534 --clear-groups /usr/bin/python3 -c 0; then
	chmod 711 "$dir" "$VMIMG_STORE"
	chmod 666 "$CONTROL_SOCKET"
	echo "- another user is refused, whatever the socket's mode (CP-9)"
	setpriv --reuid=65534 --clear-groups /usr/bin/python3 -c '
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
try: s.sendall(b"{\"id\": 1, \"method\": \"Version\"}\n")
except OSError: pass
print(s.recv(4096).decode())
try: rest = s.recv(10)
except ConnectionResetError: rest = b""
print(rest)' "$CONTROL_SOCKET" >out 2>err || die "no answer"
	grep -q '^{"id":null,"error":{"code":"EACCES"' out && grep -q "b''" out || die "not refused and closed"
	chmod 600 "$CONTROL_SOCKET"
fi

ok "a collection" collection create c m
ok "a snapshot" snapshot create c@s
ok "metrics" metrics
grep -q '"store"' out || die "no metrics"
ok "for Prometheus" metrics --format=prometheus
grep -q '^# TYPE vmimg_' out || die "no metrics for Prometheus"
fails 1 '"ENOTCONN"' "without a server there are none" -s nowhere metrics --output=json

fails 1 "" "a store that is served is not checked (CK-1)" --lock-timeout=0 check "$VMIMG_STORE"

# The end (CP-15).
"$VMIMG" events >events 2>events.err &
watcher=$!
sleep 0.5
serve_stop "SIGTERM ends the server with clients there"
wait $watcher
is $? 1 "which hear of it"
[ ! -e "$CONTROL_SOCKET" ] || die "the socket is left"
serve
"$VMIMG" events >events 2>events.err &
watcher=$!
told() {
	v vm create probe && v vm delete probe && grep -q probe events
}
await 20 told || die "no events"
serve_crash
wait $watcher
is $? 1 "a killed server is missed"
grep -q 'has ended' events.err || die "and not told: $(cat events.err)"
[ -e "$CONTROL_SOCKET" ] || die "a killed server leaves its socket"
ok "which nobody answers: the store is idle" vm list
serve
ok "and which the next server replaces" vm list
serve_stop "and ends"
serve --control="$dir/other.sock"
ok "a socket elsewhere is named" --control="$dir/other.sock" vm list
fails 1 EBUSY "and not found otherwise" --lock-timeout=0 --output=json vm list
fails 1 '"code": 4[,}]' "errors are the same" --control="$dir/other.sock" snapshot create c@s --output=json
serve_stop "the end"
serve --vhost-user="$dir/vhost"
ok "a disk" disk create m/e --size=4M
await 10 test -S vhost/m.e.sock || die "no vhost-user socket for a new disk (CP-16)"
ok "and none" disk delete m/e
await 10 test ! -e vhost/m.e.sock || die "the socket of a deleted disk is left"
ok "another" disk create m/f --size=4M
coproc WRITER { "$VMIMG" disk write m/f 2>/dev/null; }
writer=$WRITER_PID
printf x >&"${WRITER[1]}"
busy() {
	v metrics && grep -q '"m/f"' out
}
await 10 busy || die "the writer has not come"
fails 1 '"EBUSY".*m/f' "a disk that a client uses is not deleted (CP-16)" disk delete m/f --output=json
ok "but grows" disk resize m/f 8M --output=json
has size 8388608 "to that size"
eval "exec ${WRITER[1]}>&-"
wait "$writer" 2>/dev/null
gone() {
	v disk delete m/f
}
await 10 gone || die "a disk without clients is not deleted"
fails 1 ENOENT "afterwards it is" disk show m/f --output=json
ok "a disk" disk create m/g --size=4M
ok "a snapshot" snapshot create c@v
ok "its export" snapshot export c@v exported
ok "comes in again" snapshot import exported --collection=new
await 10 test -S vhost/new-m.g.sock || die "no vhost-user socket for an imported disk (VU-2)"
serve_stop "the end"
ok "the store is sound" check "$VMIMG_STORE"
