#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# nbdsh: the requests one by one, in nbdsh.py.
. "$(dirname "$0")/common.bash"
script=$(cd "$OLDPWD" && cd "$(dirname "$0")" && pwd)/nbdsh.py
# nbdsh runs the first python3, which may be one that Debian's module is not for.
python3 -c 'import nbd' 2>/dev/null || PATH=/usr/bin:$PATH
needs nbdsh
scene
serve --max-request=1M
SOCKET=$dir/nbd run "every kind of request" nbdsh -c "exec(open('$script').read())"
sed 's/^/  /' out
stop_serving
sound "the store is sound"
