#!/bin/sh
# Makes .venv in the checkout with everything the lab, the tests and the benchmarks need.
#
# Run as often as you like: what is there is left alone, and a second run takes no time. As root on
# Debian or Ubuntu the missing system packages are installed; no service is started by that. Without root,
# whatever the machine has is used, and the last lines say how far that goes.
set -eu

cd "$(dirname "$0")/.."
checkout=$(pwd)
venv="$checkout/.venv"
stamp="$venv/setup-stamp"
extras="test,check"

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

# --- system packages ------------------------------------------------------------------------------

policy=/usr/sbin/policy-rc.d
policy_mark="written by everwall's set-up"
policy_state=untouched

deny_service_starts() {
    # Packages start their services when they are installed, unless this program says 101.
    if grep -qs "$policy_mark" "$policy"; then
        # Left by a run that was killed.
        rm -f "$policy"
        [ ! -e "$policy.before-everwall" ] || mv -f "$policy.before-everwall" "$policy"
    fi
    if [ -e "$policy" ] || [ -L "$policy" ]; then
        mv "$policy" "$policy.before-everwall"
        policy_state=moved
    else
        policy_state=added
    fi
    printf '#!/bin/sh\n# %s\nexit 101\n' "$policy_mark" >"$policy"
    chmod 755 "$policy"
}

restore_service_starts() {
    case $policy_state in
        moved) mv -f "$policy.before-everwall" "$policy" ;;
        added) rm -f "$policy" ;;
    esac
    policy_state=untouched
}

supported_system() {
    [ -r /etc/os-release ] || return 1
    (
        # shellcheck disable=SC1091
        . /etc/os-release
        major=${VERSION_ID:-0}
        major=${major%%.*}
        case ${ID:-} in
            debian) [ -z "${VERSION_ID:-}" ] || [ "$major" -ge 12 ] ;;
            ubuntu) [ "$major" -ge 24 ] ;;
            *) exit 1 ;;
        esac
    )
}

has_program() { PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null 2>&1; }

missing_packages() {
    # A package is missing when what it is wanted for does not work.
    if [ -z "$(find_python)" ]; then
        echo python3 python3-venv
    elif ! "$(find_python)" -c 'import ensurepip, venv' >/dev/null 2>&1; then
        echo python3-venv
    fi
    has_program redis-server || echo redis-server
    has_program ip || echo iproute2
    has_program nft || echo nftables
    has_program setpriv || echo util-linux
}

missing_optional_packages() {
    # Without these the kernel program of the fastest port cannot be built or loaded; all else works.
    has_program clang || echo clang
    [ -e /usr/include/bpf/bpf_helpers.h ] || echo libbpf-dev
    PATH="$PATH:/usr/sbin:/sbin" ldconfig -p 2>/dev/null | grep -q 'libbpf\.so\.[1-9]' || echo libbpf1
    [ -e /usr/include/linux/bpf.h ] || echo linux-libc-dev
    # Only the benchmark of the data path asks for it.
    has_program ethtool || echo ethtool
}

install_packages() {
    packages=$(missing_packages | tr '\n' ' ')
    optional=$(missing_optional_packages | tr '\n' ' ')
    [ -n "$packages$optional" ] || return 0
    if [ "$(id -u)" -ne 0 ]; then
        say "not root, so these system packages stay missing: $packages$optional"
        return 0
    fi
    if ! has_program apt-get || ! supported_system; then
        say "not Debian >= 12 or Ubuntu >= 24.04; please install yourself: $packages$optional"
        return 0
    fi
    say "installing $packages$optional"
    trap restore_service_starts EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    deny_service_starts
    log=$(mktemp)
    # shellcheck disable=SC2086  # the lists are words
    # Together, which is quicker; what is needed alone where something optional is not to be had.
    if ! { apt_get update && { add_packages $packages $optional || add_packages $packages; }; } >"$log" 2>&1; then
        tail -n 15 "$log" >&2
        say "apt-get failed; going on with what is there"
    fi
    rm -f "$log"
    restore_service_starts
    trap - EXIT INT TERM HUP
}

add_packages() { [ $# -eq 0 ] || apt_get install --yes --no-install-recommends "$@"; }

apt_get() { DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=120 -o Acquire::Retries=3 "$@" </dev/null; }

# --- Python ---------------------------------------------------------------------------------------

find_python() {
    for candidate in ${PYTHON:-python3} python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            command -v "$candidate"
            return 0
        fi
    done
}

# An editable installation belongs to its place; a copied checkout makes its own.
made_for() { echo "$checkout $("$python" --version)"; }

wanted_stamp() { { cat pyproject.toml; made_for; echo "$extras"; } | cksum; }

make_environment() {
    if [ -x "$venv/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$(wanted_stamp)" ]; then
        return 0
    fi
    log="$checkout/.venv-setup.log"
    # New dependencies go into the environment that is there, unless it is of another Python or place.
    if [ "$(cat "$venv/made-for" 2>/dev/null)" != "$(made_for)" ]; then
        say "making .venv with $("$python" --version)"
        "$python" -m venv --clear "$venv" >"$log" 2>&1 || {
            cat "$log" >&2
            die "cannot make a virtual environment; on Debian and Ubuntu the package python3-venv makes it possible"
        }
        made_for >"$venv/made-for"
    fi
    say "installing Python packages (numba and numpy are the large ones)"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
        --editable ".[$extras]" >>"$log" 2>&1 ||
        { tail -n 20 "$log" >&2; die "pip failed, see above"; }
    rm -f "$log"
    wanted_stamp >"$stamp"
}

install_packages
# Without a server of the system the lab on loopback has the embedded one.
has_program redis-server || has_program valkey-server || extras="$extras,embedded"
python=$(find_python)
[ -n "$python" ] || die "Python 3.11 or newer is needed (set PYTHON to name one)"
make_environment
# Says in one line what it made, or what is lacking: then there is no xdp port, and everything else works.
said=$("$venv/bin/python" -m everwall.ports.bpf_build 2>&1) || true
say "$said"
"$venv/bin/python" -m everwall.lab.capabilities
