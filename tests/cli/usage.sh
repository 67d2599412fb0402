#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# The command line: verbs, options, help, and what wrong usage answers.
. "$(dirname "$0")/common.bash"

fails 2 "no verb" "no verb is wrong usage"
fails 2 "'frobnicate'" "an unknown verb is named" frobnicate
fails 2 "'disk frobnicate'" "an unknown second word is named" disk frobnicate
fails 2 "second word" "a group alone is wrong usage" disk
fails 2 "'--bogus'" "an unknown option is named" vm list --bogus=1
fails 2 "'-x'" "an unknown letter is named" vm list -x
fails 2 "'--size' needs a value" "a missing value is wrong usage" disk create a/b --size
fails 2 "takes no value" "a value for a flag is wrong usage" disk create a/b --size=1M --in-place=yes
fails 2 "'12Q'" "a malformed size is named" disk create a/b --size=12Q
fails 2 "'99999999999T'" "a size that does not fit is refused" disk create a/b --size=99999999999T
fails 2 "one of human.json" "a word that is no choice is refused" vm list --output=xml
fails 2 "missing argument" "a missing argument" vm create
fails 2 "unexpected argument 'c'" "an argument too many is named" vm create b c
fails 2 "no store" "a store is needed" -s "" vm list
(unset VMIMG_STORE; v vm list); is $? 2 "no store at all is wrong usage"
fails 2 "not open" "a progress descriptor must be open" --progress=77 vm list
fails 1 "'--bogus'" "check answers wrong usage with 1: 2 would mean corruption" check --bogus x

ok "help lists the verbs" --help
grep -q 'snapshot create' out || die "no snapshot create in the help"
ok "help about a group" disk --help
grep -q 'disk resize' out && ! grep -q 'vm create' out || die "not the group's verbs alone"
sed -n 's/^  \([a-z]\+\( [a-z]\+\)\{0,1\}\).*/\1/p' out >/dev/null
for verb in create info map convert check init tree bench "vm create" "vm list" "vm show" "vm delete" \
	"disk create" "disk list" "disk show" "disk resize" "disk delete" "disk read" "disk write" \
	"collection create" "collection add" "collection remove" "collection rename" \
	"collection list" "collection show" "collection delete" "snapshot create" "snapshot list" \
	"snapshot show" "job list" "job show" "job wait" "job cancel"; do
	# shellcheck disable=SC2086
	ok "help about $verb" $verb --help
	grep -q "^Usage: vmimg $verb" out || die "no usage line"
	# shellcheck disable=SC2086
	ok "help before $verb" --help $verb
done
ok "the version" --version
grep -qE '^vmimg [0-9]+\.' out || die "no version"

fails 2 '^\{"error": \{"code": "EINVAL", "message": ".*bogus.*"\}\}$' \
	"wrong usage is JSON too, wherever the option stands" vm list --bogus --output=json
init
ok "global options before the verb" -s "$VMIMG_STORE" --output json vm create a
has name a "and they count"
ok "global options between its words" vm --output=json create b
has name b "and they count"
ok "global options after it" vm create c -s"$VMIMG_STORE" --output=json
has name c "and they count"
ok "-- ends the options" vm show --output=json -- a
fails 1 '"code": "ENOENT"' "errors of the library are JSON" vm show nobody --output=json
[ ! -s out ] || die "an error prints nothing on standard output"
fails 1 '^vmimg: .*nobody' "errors name what is wrong" vm show nobody
(v vm list >/dev/full 2>err) ; "$VMIMG" vm list >/dev/full 2>err
is $? 1 "a full standard output is a failure"

ok "a collection of its own" collection create a
echo "- names that are not there, or are none, say of what they are, and what was expected"
while IFS='|' read -r said words; do
	# shellcheck disable=SC2086
	fails 1 "^vmimg: $said\$" "$words" $words
done <<'END'
collection nope: there is none of this name|snapshot list nope
collection nope: there is none of this name|refpoint list nope
vm nope: there is none of this name|disk list nope
disk: 'a' is no name, expected VM/DISK|disk show a
snapshot: 'p' is no name, expected COLLECTION@NAME|snapshot show p
new snapshot: 'a@' is no name, expected NAME or COLLECTION@NAME|snapshot create a@
reference point: 'p@x' is no name, expected COLLECTION#NAME|refpoint show p@x
job: 'x' is no name, expected an id|job show x
END
fails 2 'give --size, of 512 bytes or more, or --from' "a disk of no bytes" disk create a/d --size=0
mkdir empty
fails 1 'not a store: No such file or directory' "a directory that is no store" -s empty vm list
ok "a disk" disk create a/d --size=1M
ok "a collection" collection create p a
ok "a snapshot" snapshot create p@s
fails 1 'raw files cannot be compressed' "raw files and -c" snapshot export p@s to --format=raw -c
[ ! -e to ] || die "something was made"
fails 1 'snapshot p@s: exists already' "a name that is taken, of what a revert keeps" \
	snapshot revert p@s --keep-as=s
fails 1 'standard input: ' "- is called by its name" snapshot verify -
