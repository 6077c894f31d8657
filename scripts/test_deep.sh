#!/bin/sh
# The same promises, asked for longer: more cases, more seeds, bounds checks, larger lab runs.
set -eu

cd "$(dirname "$0")/.."
python=.venv/bin/python
"$python" -m everwall warm
export EVERWALL_DEEP=1
echo "=== kernel tests, the long campaigns"
"$python" -m pytest -q -m "kernel and not lab" tests
echo "=== all kernel tests with bounds checks, in a cache of their own"
NUMBA_BOUNDSCHECK=1 "$python" -m pytest -q -m "kernel and not lab and not slow_compile" tests
echo "=== the store in every topology"
"$python" -m pytest -q tests/store tests/doctor/test_topology.py tests/test_node.py
echo "=== nodes behind a veth: 10,000 rules are replaced under traffic"
"$python" -m pytest -q tests/test_cut_through.py
echo "=== simulator, 2000 seeds"
"$python" -m everwall.sim --seeds 2000
echo "=== simulator, 1000 seeds in strict mode"
"$python" -m everwall.sim --mode strict --seeds 1000
echo "=== half an hour of churn in the store"
"$python" bench/churn.py
echo "=== lab, full size"
for failure in kill drain hang partition isolate store; do
    "$python" -m everwall lab --fail "$failure"
done
