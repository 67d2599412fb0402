# SPDX-License-Identifier: MIT
#
# Sourced by the scripts of this folder, which have a server at work: start, stop, crash. The rest is
# tests/cli's.
declare -F die >/dev/null || . "$(dirname "${BASH_SOURCE[0]}")/../cli/common.bash"

server=
trap '[ -z "$server" ] || kill -KILL "$server" 2>/dev/null; rm -rf "$dir"' EXIT
export NBD_SOCKET=$VMIMG_STORE/nbd.sock CONTROL_SOCKET=$VMIMG_STORE/control.sock

await() { # SECONDS COMMAND...: until it succeeds
	local end=$((SECONDS + $1))
	shift
	until "$@" >/dev/null 2>&1; do
		[ "$SECONDS" -lt "$end" ] || return 1
		sleep 0.05
	done
}

ready() {
	[ -s pid ] || ! kill -0 "$server"
}

serve() { # OPTION...: starts a server, and returns when clients can connect
	rm -f pid
	"$VMIMG" serve --pid-file="$dir/pid" "$@" 2>>serve.log </dev/null &
	server=$!
	await 30 ready
	kill -0 "$server" 2>/dev/null || { cp serve.log err; die "the server does not start"; }
}

serve_stop() { # CLAIM: SIGTERM, and status 0
	local status
	kill -TERM "$server"
	wait "$server"
	status=$?
	server=
	echo "- $1"
	[ "$status" = 0 ] || { cp serve.log err; die "$1: the server ended with $status"; }
}

serve_crash() { # kill -9
	kill -KILL "$server"
	wait "$server" 2>/dev/null
	server=
}

nbd_uri() { # EXPORT
	echo "nbd+unix:///${1//@/%40}?socket=$NBD_SOCKET"
}
