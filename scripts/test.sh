#!/bin/sh
# The stages of `make test`, each with its time. Goes on after a failed stage, so that one run tells
# everything, and ends with 1 when any failed.
set -u

cd "$(dirname "$0")/.."
python=.venv/bin/python
times=""
failed=""
began=$(date +%s)

stage() {
    title=$1
    shift
    printf '\n=== %s\n' "$title"
    start=$(date +%s)
    "$@"
    status=$?
    seconds=$(($(date +%s) - start))
    verdict=ok
    if [ $status -ne 0 ]; then
        verdict=FAILED
        failed="$failed, $title"
    fi
    times="$times$(printf '%-46s %5d s  %s' "$title" "$seconds" "$verdict")
"
    return $status
}

summary() {
    printf '\n=== times\n%s%-46s %5d s\n' "$times" total $(($(date +%s) - began))
    [ -z "$failed" ] || { printf 'failed: %s\n' "${failed#, }" >&2; exit 1; }
    exit 0
}

pytest() { "$python" -m pytest -q "$@"; }

interpreted() { NUMBA_DISABLE_JIT=1 pytest -m "kernel and not lab and not slow_compile" tests; }

stage "set-up" sh scripts/setup.sh || summary
stage "warm" "$python" -m everwall warm || summary
stage "kernel tests, compiled" pytest -m "kernel and not lab" tests
stage "kernel tests, interpreted" interpreted
stage "all other tests" pytest -m "not kernel and not lab" tests
stage "simulator, 200 seeds" "$python" -m everwall.sim --seeds 200
stage "lab, a short run per failure kind" pytest -m lab -k "not loopback and not user_namespace" tests
# Tests that root could run as well; here they show that no privilege is needed.
stage "lab in a user namespace and on loopback" \
    sh scripts/unprivileged.sh "$python" -m pytest -q -m lab -k "loopback or user_namespace" tests
summary
