#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Real guests: the server is killed by force under load, and a guest in the middle of a snapshot. The
# guests go on with the new server; nothing that was acknowledged is lost (P4), and the order of
# dependent writes holds in every snapshot (P1).
. "$(dirname "$0")/common.bash"

vm_setup
make_store
serve_start
boot
names=()
for i in 1 2; do
	go 120
	ask wait $((turns - 100))
	serve_kill
	sleep 0.$((RANDOM % 5 + 1))
	serve_start
	ask wait $((turns - 60))
	took after$i
	names+=("$collection@after$i")
	waited
	echo "- after kill $i of the server the guests went on ($SECONDS s)"
done
for i in 1 2 3; do
	go 120
	ask wait $((turns - 100))
	{ sleep 0.0$((RANDOM % 5)); kill -KILL "$server_pid"; } &
	snapshot torn$i && words="went through" || words="failed"
	wait "$server_pid" 2>/dev/null
	serve_start
	if "$vmimg" snapshot show $collection@torn$i >log 2>&1; then
		names+=("$collection@torn$i")
		words+=", and is whole"
	elif [ "$words" = "failed" ]; then
		words+=", and left nothing"
	else
		die "snapshot torn$i was reported, and is gone"
	fi
	waited
	echo "- snapshot torn$i, the server killed meanwhile: $words ($SECONDS s)"
done
for vm in b a; do
	go 120
	ask wait $((turns - 100))
	{ sleep 0.0$((RANDOM % 3)); kill -KILL "${vm_pid[$vm]}"; } &
	took without-$vm 2>/dev/null # the shell tells of the kill
	names+=("$collection@without-$vm")
	vm_kill $vm
	vm_start $vm
	waited
	echo "- $vm was killed meanwhile, booted again and has all that it acknowledged ($SECONDS s)"
done
stop
in_order "${names[@]}" now
finish
