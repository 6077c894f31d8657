#!/bin/sh
# The same promises, asked for longer: more cases, more seeds, bounds checks, larger lab runs.
set -u

cd "$(dirname "$0")/.."
. scripts/stages.sh
export EVERWALL_DEEP=1

pytest() { "$python" -m pytest -q "$@"; }

stage "warm" "$python" -m everwall warm || summary
stage "kernel tests, the long campaigns" pytest -m "kernel and not lab" tests
# In a cache of their own, which no worker of a test shall have to fill while packets wait.
stage "warm, with bounds checks" env NUMBA_BOUNDSCHECK=1 "$python" -m everwall warm
stage "all kernel tests with bounds checks" \
    env NUMBA_BOUNDSCHECK=1 "$python" -m pytest -q -m "kernel and not lab and not slow_compile" tests
stage "the store in every topology" pytest tests/store tests/doctor/test_topology.py tests/test_node.py
stage "10,000 rules replaced under traffic" pytest tests/test_cut_through.py
stage "simulator, 2000 seeds" "$python" -m everwall.sim --seeds 2000
stage "simulator, 1000 seeds in strict mode" "$python" -m everwall.sim --mode strict --seeds 1000
stage "half an hour of churn in the store" "$python" bench/churn.py
for failure in kill drain hang partition isolate store; do
    stage "lab, full size: $failure" "$python" -m everwall lab --fail "$failure"
done
summary
