#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Real guests with the QEMU guest agent: a snapshot with application consistency holds file systems that
# are clean before any journal is replayed, and says who was frozen; a guest or the server killed
# meanwhile leaves no guest frozen (T24), and no snapshot that says more than it is.
. "$(dirname "$0")/common.bash"

killed() { # NAME PID: a snapshot with application consistency during which that process is killed
	{ sleep 0.$((RANDOM % 4))$((RANDOM % 10)); kill -KILL "$2"; } &
	if { snapshot "$1" --consistency=application; } 2>/dev/null; then
		names+=("$collection@$1")
		words="went through"
	else
		words="failed"
	fi
}

vm_setup
make_store --guest-agent="$work/VM.agent"
serve_start
boot
names=()
for i in 1 2; do
	go 80
	ask wait $((turns - 60))
	took app$i --consistency=application
	names+=("$collection@app$i")
	[ "$(json consistency snapshot.json)" = 1 ] || die "app$i is not application consistent"
	[ "$(grep -c '"frozen": true' snapshot.json)" = 2 ] || die "app$i: not both guests were frozen"
	waited
	echo "- both guests were frozen, for $(json freeze_ns snapshot.json) ns, and went on ($SECONDS s)"
done
go 80
ask wait $((turns - 60))
took crash
waited
go 80
ask wait $((turns - 60))
killed b-killed "${vm_pid[b]}"
vm_kill b
vm_start b
waited
echo "- b was killed in the middle of a snapshot, which $words; a was not left frozen ($SECONDS s)"
go 80
ask wait $((turns - 60))
killed server-killed "$server_pid"
wait "$server_pid" 2>/dev/null
serve_start
if ! "$vmimg" snapshot show $collection@server-killed >log 2>&1; then
	[ "$words" = failed ] || die "server-killed was reported, and is gone"
elif [ "$words" = failed ]; then
	names+=("$collection@server-killed")
	words+=", and is whole"
fi
waited
echo "- the server was killed in the middle of one, which $words; no guest was left frozen ($SECONDS s)"
stop
copy_disk $collection@crash a/root crash || die "reading $collection@crash/a/root"
! check_before crash/a/root ext4 crash >/dev/null || die "without the agent there is a journal to replay"
CHECK_BEFORE=1 in_order "${names[@]}" now
finish
