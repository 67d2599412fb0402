#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# SIGINT and SIGTERM end long verbs cleanly: status 1, nothing left behind, the store sound.
. "$(dirname "$0")/common.bash"

ended() { # PID CLAIM: it ends with status 1 within ten seconds
	for _ in $(seq 200); do
		kill -0 "$1" 2>/dev/null || break
		sleep 0.05
	done
	kill -0 "$1" 2>/dev/null && { kill -9 "$1"; die "$2: still running"; }
	wait "$1"
	is $? 1 "$2"
}

create_or_cancel() { # NOUN: interrupted after some time, it is made or it is not
	local made=0 delay
	echo "- $1 create is cancelled or completes"
	for delay in 0.02 0.03 0.04 0.05 0.06 0.08; do
		"$VMIMG" "$1" create c >out 2>err &
		sleep $delay
		kill -INT $! 2>/dev/null
		wait $!
		case $? in
		0) made=$((made + 1)) ;;
		1) grep -q 'cancel' err || die "no word of the cancelling" ;;
		130) : ;;	# before the command could catch anything
		*) die "neither: status $?" ;;
		esac
	done
	v "$1" list --output=json || die "list"
	is "$(grep -c "\"$1\":" out)" $made "and what completed is there, nothing else"
}

init
v vm create m && v disk create m/d --size=64M || die "disk"
noise model 16M

set -m	# background jobs of a script ignore SIGINT otherwise
"$VMIMG" convert model slow.raw --rate-limit=1M/s >out 2>err &
sleep 1
kill -INT $!
ended $! "convert ends"
[ -z "$(ls slow.raw* 2>/dev/null)" ] || die "convert left its file"
"$VMIMG" convert -c -O qcow2 model slow.qcow2 --rate-limit=1M/s >out 2>err &
sleep 1
kill -TERM $!
ended $! "convert to qcow2 ends"
[ -z "$(ls slow.qcow2* 2>/dev/null)" ] || die "convert left its file"

mkfifo pipe
"$VMIMG" disk write m/d <pipe >out 2>err &
exec 8>pipe
cat model >&8
sleep 1
kill -TERM $!
ended $! "disk write ends"
exec 8>&-
grep -q 'Interrupted' err || die "disk write does not say why"
"$VMIMG" disk read m/d 0 15M >back || die "read"
head -c 15M model >expected
same expected back "what it had taken is there"

if ! served; then
	"$VMIMG" bench m/d --rw=randwrite --runtime=60 --output=json >out 2>err &
	sleep 2
	kill -INT $!
	ended $! "bench ends"
	grep -q '"iops"' out || die "bench lost what it had measured"
fi

v collection create c m || die "collection"
for d in $(seq 30); do
	v disk create m/x"$d" --size=1M || die "disk"
done
create_or_cancel snapshot
create_or_cancel refpoint
ok "the store goes on" snapshot create c@s
sound "and is sound"
