"""How fast packets pass, beside what else there is: ``python bench/dataplane.py [--quick] [--json FILE]``, as root.

In one run, side by side and in rounds that alternate: a bare XDP bounce, the cut-through with ten thousand and a
million sessions, the engine over AF_XDP, raw and UDP sockets, and the kernel's own forwarding with nftables
and conntrack (``bench/nftables.conf``), which does without GENEVE. The device under test has one processor, with
NAPI, worker and store's thread; generator, receiver and store have the other one. The last table holds the figures
against the project's bounds. Exit status 3: the baselines are not what this machine can do when it is quiet, so that
nothing here counts.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from bench.rig.contenders import Rig  # noqa: E402  (the path has to be set before)
from bench.rig.plan import SIZES, Bench  # noqa: E402
from everwall.warm import FIREWALL, warm  # noqa: E402

EXIT_NOT_SANE = 3
ROUNDS, SECONDS = 5, 0.5


def _stop(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def why_not() -> str:
    """What this machine or user lacks for it; empty when nothing."""
    if os.geteuid() != 0:
        return "needs root, for namespaces and programs in the kernel"
    if len(os.sched_getaffinity(0)) < 2:
        return "needs two processors, one of them for the device under test"
    lacking = [name for name in ("clang", "ip", "nft", "ethtool") if shutil.which(name) is None]
    return f"needs {', '.join(lacking)}" if lacking else ""


def run(sizes: Sequence[int], rounds: int, seconds: float) -> dict[str, Any]:
    """Everything; with one size only what ``--quick`` measures."""
    warm(print, modules=FIREWALL)
    with Rig() as rig:
        bench = Bench(rig, rounds, min(seconds, 1.0))
        bench.prepare(sockets=len(sizes) > 1)
        bench.measure(list(sizes))
        return bench.figures()


def measure(seconds: float) -> dict[str, float]:
    """For ``python -m bench``: the quick form's figures."""
    del seconds  # its rounds have a length of their own
    if why := why_not():
        print(f"no measurement of the data path: {why}")
        return {}
    found = run(SIZES[:1], ROUNDS, SECONDS)
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench/dataplane.py", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="64-byte inner packets only, within 150 s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="paired rounds of each measurement")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of one contender in one round")
    options = parser.parse_args()
    if why := why_not():
        parser.error(why)
    command = shlex.join(["python", *sys.argv])
    began = time.monotonic()
    signal.signal(signal.SIGTERM, _stop)
    found = run(SIZES[:1] if options.quick else SIZES, options.rounds, options.seconds)
    result = {"command": command, "seconds": round(time.monotonic() - began, 1), **found}
    print(f"\n{command}: {result['seconds']} s")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    if not result["sane"]:
        print(f"NOT SANE: {result['why_not_sane']}. Nothing here counts; is the machine quiet?")
        return EXIT_NOT_SANE
    return 0


if __name__ == "__main__":
    sys.exit(main())
