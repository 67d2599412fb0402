#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Space of deleted snapshots: given back before the command ends, or in the background; folds as jobs.
. "$(dirname "$0")/common.bash"

layers() { # how many web/root has
	v disk show m/d --output=json || die "disk show"
	get layers
}

count_files() {
	find "$VMIMG_STORE/layers" -name '*.vmo' | wc -l
}

change() { # SNAPSHOT: 8 MiB of changes at the same place, then a snapshot
	noise part 8M
	"$VMIMG" disk write m/d 1M <part >out 2>err || die "write"
	v snapshot create "c@$1" || die "create $1"
}

init
v vm create m && v disk create m/d --size=32M && v collection create c m || die "no disk"
v snapshot create c@base || die "base"
for s in s1 s2 s3 s4 s5 s6 s7 s8; do change $s; done
cp part expected

before=$(layers)
ok "a snapshot is deleted" snapshot delete c@s1 --output=json
has return_value 0 "at once"
[ "$(get job)" != "" ] || die "no job"
! served || ok "a server gives the space back by itself" settle c
is "$(layers)" $((before - 1)) "and when the command has ended its space is back"

ok "or is left where it is" snapshot delete c@s2 --no-wait
ok "until it is asked for" settle
is "$(layers)" $((before - 2)) "then it comes back"
ok "of one disk" settle m/d
ok "or of a collection, whole" settle c --whole --timeout=60 --output=json
has job_type 300 "as a job"
has job_state 7 "that completes"
fails 1 "no disk or collection" "of nobody" settle nobody
fails 2 "no rate" "a rate is one" job rate folds fast
ok "folds have a rate" job rate folds 1M/s --output=json
has fold_rate 1048576 "which is said"
ok "or none" job rate folds none

"$VMIMG" snapshot delete c@s3 --progress=3 3>lines >out 2>err || die "delete with progress"
if ! served; then
	echo "- progress tells the bytes"
	grep -q '"operation": "space".*"percent_complete": 100' lines || die "no line: $(cat lines)"
fi

if served; then
	ok "what the server has to do" settle
	ok "a slow fold" job rate folds 64K/s
	v snapshot delete c@s4 || die "delete"
	for _ in $(seq 100); do
		v job list || die "list"
		id=$(awk '/ fold .* m\/d .* running / {print $1; exit}' out)
		[ -z "$id" ] || break
		sleep 0.05
	done
	[ -n "$id" ] || die "the fold is no job: $(cat out)"
	ok "is a job" job show "$id" --output=json
	has job_type 50 "of type Merging"
	has rate_limit 65536 "with its limit"
	has job_state 4 "that runs"
	ok "that can be cancelled" job cancel "$id" --output=json
	has job_state 8 "then it has ended"
	ok "quicker" job rate folds none
	is "$(layers)" $((before - 3)) "and is not begun again: the layer stays"
	ok "but by who asks for it" settle
	is "$(layers)" $((before - 4)) "it has gone"
else
	echo "- --async leaves a process that gives the space back"
	answer=$(timeout 20 "$VMIMG" snapshot delete c@s4 --rate-limit=1M/s --async --output=json) ||
		die "async: status $?"
	echo "$answer" >out
	pid=$(get pid)
	[ -n "$pid" ] || die "no pid"
	kill -0 "$pid" 2>/dev/null || die "no process"
	fails 1 "process $pid has it \(.*snapshot delete" "whoever comes meanwhile hears who has it" \
		job list
	for _ in $(seq 600); do
		kill -0 "$pid" 2>/dev/null || break
		sleep 0.1
	done
	kill -0 "$pid" 2>/dev/null && die "it does not end"
	is "$(layers)" $((before - 4)) "and it did"

	echo "- an interrupt leaves the space, and nothing else"
	set -m
	"$VMIMG" snapshot delete c@s5 --rate-limit=256K/s >out 2>err &
	sleep 2
	kill -INT $!
	wait $!
	is $? 0 "the snapshot is deleted all the same"
	grep -q "space comes back" err || die "it is not said"
	fails 1 "no such snapshot" "it is gone" snapshot delete c@s5
	ok "the next one gives it back" settle
	is "$(layers)" $((before - 5)) "all of it"
	echo "- on a terminal there is a bar, with rate and time left"
	script -qec "'$VMIMG' snapshot delete c@s6 --rate-limit=2M/s" /dev/null >typed 2>&1 </dev/null ||
		die "delete on a terminal"
	grep -q 'space \[#.*\] .* %.* of .*B/s, 0:0[0-9] left' typed || die "no bar: $(tail -c 300 typed)"
	is "$(layers)" $((before - 6)) "and the space is back"
	ok "retention waits for what pays" snapshot prune c --keep-last=1
	ok "and so little does not: it is folded when that is asked for" settle --whole
	is "$(layers)" 2 "into the base, beneath the head"
	files=$(count_files)
	ok "nothing is leaked" settle --whole
	is "$(count_files)" "$files" "by anybody"
fi

"$VMIMG" disk read m/d 1M 8M >back || die "read"
same expected back "the disk is as it was"
"$VMIMG" disk read c@s8/m/d 1M 8M >back || die "read"
same expected back "and so is what stayed"
if ! served; then
	change s9
	change s10
	ok "all is sealed" settle
	ok "who deletes one may leave its space to others" snapshot delete c@s9 --no-wait
	folds() {
		v job list || die "job list"
		grep -c 'fold (50)' out
	}
	before=$(folds)
	for _ in 1 2 3 4 5; do v snapshot list || die "list"; done
	is "$(folds)" "$before" "commands that only look begin no fold"
	before=$(layers)
	ok "who settles does" settle
	is "$(layers)" $((before - 1)) "and the space is back"
fi
sound "the store is sound"
