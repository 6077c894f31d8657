#!/bin/sh
# The stages of `make test`.
#
# Two run at a time. What only computes goes on behind what talks to processes, servers and the clock: at a
# low priority, so that nobody in front waits for it, and in a network of its own, so that no address and no
# port is wanted twice. Where such a network is not to be had (it takes root), one stage follows the other.
set -u

cd "$(dirname "$0")/.."
. scripts/stages.sh
is_behind=""
lane=""
trap 'stop; exit 130' INT

# Runs a function full of stages behind those that follow here; `together` waits for it and shows what it printed.
behind() {
    if unshare --net true 2>/dev/null; then
        {
            is_behind=yes
            trap - EXIT INT
            trap 'kill $command; exit 143' TERM
            "$@"
        } >"$work/behind" 2>&1 &
        lane=$!
    else
        "$@"
    fi
}

together() {
    [ -z "$lane" ] || { wait "$lane"; cat "$work/behind"; }
    lane=""
}

end() {
    together
    summary
}

stop() {
    [ -z "$lane" ] || kill "$lane"
    together
}

# A command that keeps out of the way of what is in front.
aside() {
    [ -n "$is_behind" ] || { "$@"; return; }
    kill -0 $$ || exit 1 # nobody is in front any more
    # shellcheck disable=SC2016  # expanded by the inner shell
    unshare --net nice -n 5 sh -c 'ip link set lo up && exec "$@"' aside "$@" &
    command=$!
    wait $command
}

# Folders without sockets, processes and waiting.
compute_only="tests/policy tests/sim"

computing() {
    stage "behind: kernel tests, interpreted" aside env NUMBA_DISABLE_JIT=1 \
        "$python" -m pytest -q -m "kernel and not lab and not slow_compile" tests
    stage "behind: kernel tests, compiled" aside "$python" -m pytest -q -m "kernel and not lab" tests
    # shellcheck disable=SC2086  # the folders are words
    stage "behind: tests of policy and simulator" aside "$python" -m pytest -q -m "not kernel and not lab" $compute_only
    stage "behind: simulator, 200 seeds" aside "$python" -m everwall.sim --seeds 200
}

stage "set-up" sh scripts/setup.sh || end
stage "warm" "$python" -m everwall warm || end
behind computing
# shellcheck disable=SC2046,SC2086  # words
stage "all other tests" \
    "$python" -m pytest -q -m "not kernel and not lab" $(printf -- '--ignore=%s ' $compute_only) tests
stage "lab, a short run per failure kind" \
    "$python" -m pytest -q -m lab -k "not loopback and not user_namespace" tests
# Tests that root could run as well; here they show that no privilege is needed.
stage "lab in a user namespace and on loopback" \
    sh scripts/unprivileged.sh "$python" -m pytest -q -m lab -k "loopback or user_namespace" tests
end
