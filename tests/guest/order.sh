#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Real guests: the order of dependent writes between guests holds in snapshots taken while they run (P1);
# their file systems are sound after their journals are replayed; one snapshot boots again. A longer
# budget, as in `make soak`, makes it 50 snapshots in 5,000 writes a chain.
. "$(dirname "$0")/common.bash"

snapshots=4 each=60
[ "${VMIMG_TEST_SECONDS:-0}" -lt 300 ] || snapshots=50 each=100
vm_setup
make_store
serve_start
boot
names=()
for ((i = 1; i <= snapshots; i++)); do
	go $each
	ask wait $((turns - each / 2))
	took s$i
	names+=("$collection@s$i")
done
waited
ask times
echo "- $answer us"
stop
in_order "${names[@]}" now
boot_again "${names[snapshots / 2]}"
echo "- ${names[snapshots / 2]} boots again, and its guests go on ($SECONDS s)"
finish
