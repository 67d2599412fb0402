#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# disk read and disk write: bytes of any alignment, imports, and the disk's end.
. "$(dirname "$0")/common.bash"

size=$((13 * 1024 * 1024))
init
ok "a VM" vm create m
ok "a disk" disk create m/d --size=$size
noise model $size
"$VMIMG" disk write m/d 0 <model || die "write"
"$VMIMG" disk read m/d 0 $size >back || die "read"
same model back "what was written is read"
"$VMIMG" disk read m/d >back
same model back "all of it by default"
"$VMIMG" disk read m/d 12M >back
tail -c +$((12 * 1024 * 1024 + 1)) model >expected
same expected back "to the end by default"

for range in "1 1" "511 2" "4095 4098" "1048575 3" "1234567 2345678" "$((size - 5)) 5" "777 0"; do
	read -r at len <<<"$range"
	noise piece "$len"
	"$VMIMG" disk write m/d "$at" <piece || die "write at $at"
	dd if=piece of=model bs=64K seek="$at" oflag=seek_bytes conv=notrunc status=none
	"$VMIMG" disk read m/d "$at" "$len" >back
	same piece back "$len bytes at $at are read back"
done
# A pipe gives short reads, which must not become holes.
{ head -c 700000 model; sleep 0.2; tail -c +700001 model; } | "$VMIMG" disk write m/d || die "pipe"
"$VMIMG" disk read m/d >back
same model back "and nothing beside them changed"

start=$(date +%s%N)
"$VMIMG" disk read m/d 0 3M --rate-limit=2M/s >back || die "read"
head -c 3M model >expected
same expected back "a limited read reads the same"
[ $(($(date +%s%N) - start)) -ge 1400000000 ] || die "the limit does not limit"

fails 1 "beyond the end" "a read beyond the end is refused" disk read m/d 1 $size
[ ! -s out ] || die "and prints nothing"
fails 1 "beyond the end" "so is one that wraps" disk read m/d 16 18446744073709551615
noise piece 6
"$VMIMG" disk write m/d $((size - 5)) <piece 2>err >out
is $? 1 "a file that reaches beyond the end is refused"
"$VMIMG" disk read m/d >back
same model back "and not written at all"
head -c 6 piece | cat | "$VMIMG" disk write m/d $((size - 5)) 2>err >out
is $? 1 "so is a pipe"
"$VMIMG" disk read m/d 2>err | head -c 1 >/dev/null
is "${PIPESTATUS[0]}" 1 "a reader that goes away is a failure"
fails 1 "m/none" "a disk that is not there" disk read m/none

"$VMIMG" disk write m/d 4096 --output=json <piece >out || die "write"
has written 6 "how much was written is told"

ok "import raw" disk create m/raw --from=model
"$VMIMG" disk read m/raw >back
same model back "reads as the file"
"$VMIMG" disk write m/raw 100 <piece
cmp -s model back || die "the import changed its file"
cp model own.raw
ok "raw in place" disk create m/own --from=own.raw --in-place
"$VMIMG" disk write m/own 100 <piece
is "$(tail -c +101 own.raw | head -c 6 | cmp - piece && echo same)" same "is written where it is"
sound "the store is sound"

command -v qemu-img >/dev/null || { echo "no qemu-img: qcow2 is not checked"; exit 0; }
qemu-img convert -c -O qcow2 model model.qcow2 || die "qemu-img"
before=$(sha256sum model.qcow2)
ok "import qcow2" disk create m/q --from=model.qcow2
"$VMIMG" disk read m/q >back
same model back "reads as the image"
ok "qcow2 in place" disk create m/qp --from=model.qcow2 --in-place
"$VMIMG" disk write m/qp 100 <piece || die "write above qcow2"
dd if=piece of=model bs=64K seek=100 oflag=seek_bytes conv=notrunc status=none
"$VMIMG" disk read m/qp >back
same model back "takes writes above it"
is "$(sha256sum model.qcow2)" "$before" "and is never written itself"
sound "the store is sound"

# --- smaller, when told to (RZ) ---
v vm create small && v disk create small/d --size=4M && v collection create cut small || die "disk"
noise content 4194304
"$VMIMG" disk write small/d 0 <content || die "write"
ok "a snapshot" snapshot create cut@whole
fails 1 "unless told to" "a disk does not shrink by accident" disk resize small/d 1M
fails 1 '"EINVAL"' "nor to a part of a block" disk resize small/d 1000448 --shrink --output=json
ok "it shrinks when told to" disk resize small/d 1M --shrink --output=json
has size 1048576 "to that size"
ok "and grows" disk resize small/d 2M --shrink
head -c 1048576 content >expected
head -c 1048576 /dev/zero >>expected
"$VMIMG" disk read small/d >back
same expected back "zeros are where something was"
"$VMIMG" disk read cut@whole/small/d >back
same content back "but for the snapshot"
sound "the store is sound after it"
