#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# tree: the picture in both alphabets, long chains elided, JSON whole.
. "$(dirname "$0")/common.bash"

init
ok "the tree of an empty store" tree
v vm create web && v disk create web/root --size=4M || die "disk"
v vm create db && v disk create db/log --size=2M --independent || die "disk"
v collection create prod web || die "collection"
for i in $(seq 12); do
	head -c 8K /dev/urandom | "$VMIMG" disk write web/root $((i * 65536)) || die "write"
	v snapshot create "prod@s$i" || die "snapshot"
done
LC_ALL=C v tree || die "tree"
grep -qF '|-- collection prod: web' out || die "no collection"
grep -qF -- '-- prod@s1 ' out || die "no snapshot"
grep -qF -- '-- vm web' out || die "no VM"
grep -qE -- '-- root  4 MiB$' out || die "no disk"
grep -qE -- '-- log  2 MiB  independent$' out || die "no independent disk"
grep -qE -- '-- : [0-9]+ more layers$' out || die "a long chain is not elided"
grep -qE -- '`-- overlay .* active' out || die "no head"
LC_ALL=C grep -q '[^ -~]' out && die "not ASCII"
echo "- the picture in ASCII"
LC_ALL=C.UTF-8 v tree || die "tree"
grep -qF '├── collection prod: web' out || die "no box drawing"
echo "- and in Unicode"
ok "as JSON" tree --output=json
is "$(grep -c '"generation"' out)" 14 "with every layer"
