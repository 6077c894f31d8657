"""``python -m bench [NAME...]``: runs the named measurements, or all; ``--json FILE`` keeps the numbers."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from bench import (
    churn,
    dataplane,
    engine,
    gateway,
    handover,
    memory,
    policy,
    records,
    reload,
    start,
    store,
    takeover,
    worker,
)

MEASUREMENTS = {
    "churn": churn.measure,
    "dataplane": dataplane.measure,
    "engine": engine.measure,
    "gateway": gateway.measure,
    "handover": handover.measure,
    "memory": memory.measure,
    "policy": policy.measure,
    "records": records.measure,
    "reload": reload.measure,
    "start": start.measure,
    "store": store.measure,
    "takeover": takeover.measure,
    "worker": worker.measure,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench ARGS=...")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MEASUREMENTS)}")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of each measurement")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    arguments = parser.parse_args()
    results: dict[str, dict[str, float]] = {}
    for name in arguments.names or MEASUREMENTS:
        if name not in MEASUREMENTS:
            parser.error(f"no measurement is called {name}")
        results[name] = MEASUREMENTS[name](arguments.seconds)
        print(name)
        for what, number in results[name].items():
            print(f"  {what:<44} {number:>14,.1f}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


main()
