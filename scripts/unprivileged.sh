#!/bin/sh
# Runs a command as a user who may do nothing: unprivileged.sh COMMAND [ARGUMENT...]
#
# Somebody who is not root already just runs it. Root becomes nobody, without any capability. Where
# nobody cannot read the checkout or its Python (a clone in root's home), these directories, and no others,
# are shown to the command on a way of their own. Where even that is not allowed (some containers), the
# command keeps the one capability to read files; this says so.
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
chmod 755 "$work"
chown -R 65534:65534 "$work/cache" "$work/home"

# What runs in the new mount namespace: shown.sh WORK COMMAND...
cat >"$work/shown.sh" <<'END'
set -eu
umask 022
work=$1
shift
nobody() { setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all --bounding-set=-all "$@"; }
# Kept aside first, since hiding one may hide the next.
number=0
for place in $SHOWN; do
    number=$((number + 1))
    mkdir -p "$work/$number"
    mount --rbind "$place" "$work/$number"
done
for place in $SHOWN; do
    way=""
    for part in $(dirname "$place" | tr / ' '); do
        way=$way/$part
        [ -d "$way" ] || mkdir "$way"
        # An empty directory that everybody may search stands in for one that they may not.
        nobody test -x "$way" || mount -t tmpfs -o mode=755 none "$way"
    done
done
number=0
for place in $SHOWN; do
    number=$((number + 1))
    [ -d "$place" ] || mkdir "$place"
    mount --rbind "$work/$number" "$place"
    umount --lazy "$work/$number"
done
cd "$PWD"
exec "$@"
END

as_nobody() {
    capabilities=$1
    shift
    env HOME="$work/home" TMPDIR="$work/home" EVERWALL_CACHE_DIR="$work/cache" \
        setpriv --reuid=65534 --regid=65534 --clear-groups --no-new-privs \
        --inh-caps="-all$capabilities" --ambient-caps="-all$capabilities" --bounding-set="-all$capabilities" "$@"
}

shown() {
    as=$(command -v setpriv)
    env SHOWN="$places" HOME="$work/home" TMPDIR="$work/home" EVERWALL_CACHE_DIR="$work/cache" \
        unshare --mount sh "$work/shown.sh" "$work" \
        "$as" --reuid=65534 --regid=65534 --clear-groups --no-new-privs --inh-caps=-all --bounding-set=-all "$@"
}

# The command starts programs itself: what setpriv could still open, nobody may not be able to.
probe='import subprocess, sys, everwall; subprocess.run([sys.executable, "-c", "import everwall"], check=True)'
places=$("$1" -c 'import os, sys; print(*sorted({os.getcwd(), sys.prefix, sys.base_prefix}))')
if as_nobody "" "$1" -c "$probe" >/dev/null 2>&1; then
    as_nobody "" "$@"
elif shown "$1" -c "$probe" >/dev/null 2>&1; then
    echo "unprivileged: nobody cannot read $(pwd) or its Python, so these are shown to the command"
    shown "$@"
else
    echo "unprivileged: nobody cannot read $(pwd) or its Python, so the command may read any file, and nothing else"
    as_nobody ",+dac_read_search" "$@"
fi
