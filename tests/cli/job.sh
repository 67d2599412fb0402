#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Jobs: snapshot create --async in the background, job list, show, wait, cancel.
. "$(dirname "$0")/common.bash"

init
v vm create m || die "vm"
v disk create m/d --size=4M || die "disk"
v collection create c m || die "collection"
noise model 4M
"$VMIMG" disk write m/d <model || die "write"

echo "- --async holds neither the caller's pipes nor its terminal"
answer=$(timeout 20 "$VMIMG" snapshot create c@a --async --output=json) || die "async: status $?"
echo "$answer" >out
has return_value 4096 "it returns 4096"
has state 4 "with a job that runs"
id=$(get id)
[ -n "$id" ] || die "no job id"
ok "job wait waits for it" job wait "$id" --output=json
has job_state 7 "until it completed"
has instance_id "$id" "that one"
ok "job show" job show "$id" --output=json
for key in instance_id name job_state job_type percent_complete error_code job_status cancellable \
	time_submitted start_time time_of_last_state_change elapsed_time time_before_removal; do
	[ -n "$(get $key)" ] || die "no $key"
done
has job_type 198 "its type"
has percent_complete 100 "all done"
has name c@a "the snapshot's name"
ok "job list" job list
grep -q "^$id " out || die "it is not in the list"
"$VMIMG" disk read c@a/m/d >back
same model back "the snapshot is there"
ok "for humans --async prints the job" snapshot create c@b --async
grep -qE '^job [0-9a-f-]{36}$' out || die "no job"
id_b=$(sed 's/^job //' out)
! served || ok "which is the server's" job wait "$id_b"
ok "the next command waits for the store" snapshot show c@b
ok "an export is left to others too" snapshot export c@a "$dir/exported" --async --output=json
has return_value 4096 "it returns at once"
ok "and is waited for like any job" job wait "$(get id)"
ok "then all of it is there" snapshot verify "$dir/exported"
fails 2 "standard output" "but not through a pipe" snapshot export c@a - --async
ok "an import, too" snapshot import "$dir/exported" --collection=again --async --output=json
has return_value 4096 "it returns at once"
ok "and is waited for" job wait "$(get id)"
"$VMIMG" disk read again-m/d >back
same model back "then all of it is there"
fails 2 "standard input" "but not from a pipe" snapshot import - --async
ok "a verification, too" snapshot verify again@a --async --output=json
ok "and is waited for" job wait "$(get id)"
fails 2 "itself" "but not of a stream" snapshot verify "$dir/exported" --async
ok "a reference point, too" refpoint create "c#p" --async --output=json
ok "and is waited for" job wait "$(get id)" --output=json
has job_type 205 "as what it is"
ok "then it is there" refpoint show "c#p"
fails 1 "taken|already" "what is refused is refused at once" refpoint create "c#p" --async
ok "so is its export" refpoint export "c#p" point --async --output=json
has return_value 4096 "it returns at once"
ok "and is waited for" job wait "$(get id)" --output=json
has job_type 206 "as what it is"
has job_state 7 "until it completed"
grep -q '"refpoint":"c#p"' point/refpoint.json || die "what was exported is not the point"
[ ! -e point.part ] || die "something is left"
fails 1 '"code": 4[,}]' "what is refused is refused at once" refpoint export "c#p" point --async --output=json
ok "for humans the job is printed" refpoint export "c#p" point2 --async
grep -qE '^job [0-9a-f-]{36}$' out || die "no job"
ok "a reference point is waited for otherwise" refpoint create "c#q" --output=json
has refpoint "c#q" "and told"
[ -n "$(get job)" ] || die "no job"
fails 1 '"code": 4[,}]' "what is refused is refused at once" snapshot create c@a --async --output=json
[ ! -s out ] || die "and prints nothing else"
fails 1 "no-store" "a store that is not there" -s no-store snapshot create c --async
fails 2 "exclude" "--async with --dry-run" snapshot create c --async --dry-run
fails 2 "contradicts" "--async with Synchronous" snapshot create c --async \
	'--settings={"Synchronous": true}'
fails 1 '"code": 4097' "an ended job is not cancelled" job cancel "$id" --output=json
fails 1 '"ENOENT"' "a job that is not there" job show 00000000-0000-4000-8000-000000000000 \
	--output=json
fails 1 "" "an id that is none" job wait nonsense
sound "the store is sound"
