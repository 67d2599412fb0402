# SPDX-License-Identifier: MIT
#
# console.bash - what the demos print: steps with their times, and the end of one that cannot go on.
# Sourced; colours on a terminal, unless NO_COLOR is set. The sourcing script has a directory $work.

bold= green= red= dim= off=
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
	bold=$'\e[1m' green=$'\e[32m' red=$'\e[31m' dim=$'\e[2m' off=$'\e[0m'
fi

now_ms() { local t=${EPOCHREALTIME/[.,]/}; echo $((t / 1000)); }
since() {
	local ms=$(($(now_ms) - $1))
	if [ $ms -lt 1000 ]; then echo "$ms ms"; else echo "$((ms / 1000)).$((ms % 1000 / 100)) s"; fi
}

begin_ms=$(now_ms) step=0 step_ms=0
step_begin() {
	step=$((step + 1)) step_ms=$(now_ms)
	printf '\n%s%d. %s%s\n' "$bold" $step "$1" "$off"
}
step_end() { printf '   %sdone in %s%s\n' "$dim" "$(since "$step_ms")" "$off"; }
say() { printf '   %s\n' "$*"; }

die() {
	printf '\n%sFAILED:%s %s\n' "$red" "$off" "$*"
	exit 1
}

# must WHAT COMMAND...: a step without which the demo cannot go on.
must() {
	local what=$1
	shift
	"$@" >"$work/log" 2>&1 || { tail -n 20 "$work/log"; die "$what"; }
}
