#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# The command on a served store: the same scripts as on an idle one, with the same output.
[ -x "${VMIMG:-}" ] || { echo "VMIMG does not name the command: skipped"; exit 77; }
export VMIMG_SERVED=1
for script in store disk snapshot branch diff refpoint keep job settle tree interrupt; do
	echo "== $script"
	bash "$(dirname "$0")/../cli/$script.sh" || exit 1
done
