# SPDX-License-Identifier: MIT
#
# Sourced by the scripts of this folder. Each says what it checks and ends at the first claim that does
# not hold. VMIMG: the command. The store is $VMIMG_STORE in a directory that goes with the script. With
# VMIMG_SERVED a server has the store while they run: the same commands, the same output.
set -u
[ -x "${VMIMG:-}" ] || { echo "VMIMG does not name the command: skipped"; exit 77; }
tests=$(realpath "$(dirname "${BASH_SOURCE[0]}")/..")
dir=$(mktemp -d "${TMPDIR:-/tmp}/vmimg-cli.XXXXXX") || exit 1
trap 'rm -rf "$dir"' EXIT
export VMIMG_STORE=$dir/store
unset LC_ALL LC_CTYPE LANG
cd "$dir" || exit 1

die() {
	echo "FAILED: $*"
	[ ! -s err ] || sed 's/^/  stderr: /' err
	! grep -qI . out || head -n 40 out | sed 's/^/  stdout: /'
	exit 1
}

v() { # ARG...: runs the command; output in out and err
	"$VMIMG" "$@" >out 2>err </dev/null
}

ok() { # CLAIM ARG...: the command succeeds
	local claim=$1
	shift
	echo "- $claim"
	v "$@" || die "$claim: vmimg $*: status $?"
}

fails() { # STATUS PATTERN CLAIM ARG...: it ends with this status and says why
	local status=$1 pattern=$2 claim=$3 got
	shift 3
	echo "- $claim"
	v "$@"
	got=$?
	[ "$got" = "$status" ] || die "$claim: vmimg $*: status $got, not $status"
	grep -qE -- "$pattern" err || die "$claim: vmimg $*: no '$pattern' in what it says"
}

# JSON output has one member a line, which is enough to look at it without another program.
get() { # KEY [FILE]: the member's first value, without quotes
	sed -n "s/^ *\"$1\": \"\{0,1\}\(.*[^\",]\)\"\{0,1\},\{0,1\}\$/\1/p" "${2:-out}" | head -n 1
}

has() { # KEY VALUE CLAIM
	echo "- $3"
	[ "$(get "$1")" = "$2" ] || die "$3: $1 is '$(get "$1")', not '$2'"
}

sum() { # STORE SNAPSHOT/VM/DISK: of a store of the script's own
	"$VMIMG" -s "$dir/$1" disk read "$2" 2>>err | md5sum | cut -c 1-32
}

fill() { # DISK OFFSET BYTES: random ones
	head -c "$3" /dev/urandom | "$VMIMG" disk write "$1" "$2" || die "write to $1"
}

is() { # A B CLAIM
	echo "- $3"
	[ "$1" = "$2" ] || die "$3: '$1' is not '$2'"
}

same() { # A B CLAIM: files
	echo "- $3"
	cmp "$1" "$2" >&2 || die "$3"
}

noise() { # FILE BYTES: random content
	head -c "$2" /dev/urandom >"$1"
}

served() { # whether a server has the store
	[ -n "${VMIMG_SERVED:-}" ]
}

init() {
	v init "$VMIMG_STORE" || die "no store"
	! served || serve
}

sound() { # CLAIM: the store passes the check
	! served || serve_stop "the server ends"
	ok "$1" check "$VMIMG_STORE"
	! served || serve
}

! served || . "$tests/serve/common.bash"
