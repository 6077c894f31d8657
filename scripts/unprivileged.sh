#!/bin/sh
# Runs a command as a user who may do nothing: unprivileged.sh COMMAND [ARGUMENT...]
#
# Somebody who is not root already just runs it. Root becomes nobody, without any capability. Where
# nobody cannot read the checkout or its Python (a clone in root's home), the command keeps the one
# capability to read files, and this says so.
set -eu

[ "$(id -u)" -eq 0 ] || exec "$@"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# The user's own copy of the compiled code: Numba only reads a cache that it could write.
cache=$("$1" -c 'from everwall.kernels import CACHE_DIRECTORY; print(CACHE_DIRECTORY)')
mkdir "$work/cache" "$work/home"
[ ! -d "$cache" ] || cp -a "$cache" "$work/cache/"
chown -R 65534:65534 "$work"

as_nobody() {
    capabilities=$1
    shift
    env HOME="$work/home" TMPDIR="$work/home" EVERWALL_CACHE_DIR="$work/cache" \
        setpriv --reuid=65534 --regid=65534 --clear-groups --no-new-privs \
        --inh-caps="-all$capabilities" --ambient-caps="-all$capabilities" --bounding-set="-all$capabilities" "$@"
}

# The command starts programs itself: what setpriv could still open, nobody may not be able to.
probe='import subprocess, sys, everwall; subprocess.run([sys.executable, "-c", "import everwall"], check=True)'
if as_nobody "" "$1" -c "$probe" >/dev/null 2>&1; then
    as_nobody "" "$@"
else
    echo "unprivileged: nobody cannot read $(pwd) or its Python, so the command may read any file, and nothing else"
    as_nobody ",+dac_read_search" "$@"
fi
