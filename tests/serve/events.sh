#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Events over the control socket: what comes, in which order, and what becomes of those who do not read.
. "$(dirname "$0")/common.bash"

init
serve
"$VMIMG" events >events 2>events.err &
watcher=$!
subscribed() { # a VM comes and goes, and the watcher has seen it
	v vm create probe && v vm delete probe && grep -q probe events
}
await 20 subscribed || die "no event of a VM: $(cat events.err)"
ok "a VM" vm create m
ok "a disk" disk create m/d --size=4M
ok "which grows" disk resize m/d 8M
ok "a collection" collection create c m
ok "a snapshot" snapshot create c@s
id=$("$VMIMG" snapshot create c@t --async | sed 's/^job //')
ok "and one in the background" job wait "$id"
await 10 grep -q "$id.*\"job_state\":7" events || die "no end of the job: $(cat events)"

seen() { # PATTERN CLAIM
	echo "- $2"
	grep -qE -- "$1" events || { cp events out; die "$2: no '$1'"; }
}
seen '^\{.*"event":"vm".*\}$' "each event is a line"
seen '"event":"disk".*"change":"created"|"change":"created".*"event":"disk"' "a disk's making is told"
seen '"change":"resized".*"size":8388608|"size":8388608.*"change":"resized"' "its growth"
seen '"event":"collection"' "the collection"
seen '"snapshot":"c@s"' "the snapshot"
grep -n '"snapshot":"c@s"\|c@s.*"job_state":7\|"job_state":7.*c@s' events | cut -d: -f1 >order
is "$(sort -n order | head -n 1)" "$(grep -n '"event":"snapshot"' events | grep 'c@s' | cut -d: -f1)" \
	"before its job's end"
kill -INT $watcher
wait $watcher
is $? 0 "an interrupt ends the watcher well"

# Several requests and events share a connection; who does not read is let go, and nobody waits (CP-18).
python3 - "$CONTROL_SOCKET" >out 2>err <<'END' || die "a slow subscriber"
import json, socket, sys, time
def connect():
    s = socket.socket(socket.AF_UNIX); s.settimeout(60); s.connect(sys.argv[1]); return s
def claim(what, ok):
    print("-", what)
    if not ok: print("FAILED:", what); sys.exit(1)
slow, busy = connect(), connect()
slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
slow.sendall(b'{"id": 1, "method": "Subscribe"}\n')
f = busy.makefile("rb")
busy.sendall(b'{"id": 0, "method": "Subscribe"}\n' + b'{"id": 0, "method": "Subscribe"}\n')
claim("subscribing twice is once", all(json.loads(f.readline()) == {"id": 0, "result": {}} for _ in range(2)))
N = 3000
events = replies = 0
start = time.time()
for n in range(N):
    for method, params in (("DefineVirtualMachine", {"Name": "x"}), ("DestroyVirtualMachine", {"VirtualMachine": "x"})):
        busy.sendall(json.dumps({"id": n, "method": method, "params": params}).encode() + b"\n")
        while True:
            d = json.loads(f.readline())
            if "event" in d:
                events += d["event"] == "vm"
                claim("nothing of it is dropped", d["event"] == "vm") if d["event"] != "vm" else None
            else:
                replies += d["id"] == n and "result" in d
                break
    if time.time() - start > 40:
        N = n + 1
        break
claim("%d calls are answered while another subscriber sleeps" % (2 * N), replies == 2 * N)
while events < 2 * N:
    d = json.loads(f.readline())
    events += d["event"] == "vm"
claim("each of them is told once", events == 2 * N)
got = b""
try:
    while True:
        d = slow.recv(65536)
        if not d: break
        got += d
except ConnectionResetError:
    pass
last = got.rstrip(b"\n").split(b"\n")
claim("the sleeper was let go, after %d events" % (len(last) - 1), len(last) < 2 * N)
END
cat out
serve_stop "the end"
ok "the store is sound" check "$VMIMG_STORE"
