#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# nbdcopy: out of an export, into one, between two, with several connections; all bytes arrive.
. "$(dirname "$0")/common.bash"
needs nbdcopy

sum() { # EXPORT: of all its bytes
	nbdcopy "$(uri "$1")" - | sha256sum
}
of() { # FILE
	sha256sum <"$1"
}

scene
serve
run "a disk to a file" nbdcopy "$(uri m/a)" copy
same copy after "every byte"
run "a snapshot's disk to a file" nbdcopy "$(uri c@s/m/a)" copy
same copy before "as it was"
run "to a pipe" bash -c "nbdcopy '$(uri m/a)' - | cmp - after"
run "sparse files stay sparse" nbdcopy --allocated --sparse=4096 "$(uri c@s/m/a)" copy
rm copy
run "holes are known before they are read" nbdcopy "$(uri c@s/m/a)" copy
[ "$(stat -c %b copy)" -le $((mib * 1024 + 64)) ] || die "$(stat -c %b copy) sectors for half a disk"

noise content $((mib << 20))
for options in "" "--connections=1 --requests=1" "--connections=4 --threads=4 --requests=64" \
	"--synchronous" "--request-size=32768" "--flush" "--allocated"; do
	noise content $((mib << 20))
	# shellcheck disable=SC2086
	run "a file to a disk: ${options:-as it likes}" nbdcopy $options content "$(uri m/b)"
	is "$(sum m/b)" "$(of content)" "every byte"
done
run "one disk to another" nbdcopy "$(uri m/a)" "$(uri m/b)"
is "$(sum m/b)" "$(of after)" "every byte, zeros too"
run "a snapshot to a disk: a revert by hand" nbdcopy "$(uri c@s/m/a)" "$(uri m/b)"
is "$(sum m/b)" "$(of before)" "as it was"
run "a shorter file than the disk" nbdcopy mebibyte "$(uri m/b)"
truncate -s $((mib + 1))M long
refused '' "a file longer than the disk" nbdcopy long "$(uri m/b)"
refused 'read.only|not allow' "nothing into a snapshot" nbdcopy content "$(uri c@s/m/a)"
is "$(sum c@s/m/a)" "$(of before)" "which is as it was"
is "$(sum m/a)" "$(of after)" "as is the disk"
stop_serving
sound "the store is sound"
"$VMIMG" disk read m/a 0 ${mib}M >copy || die "disk read"
same copy after "what was served is what is there"
