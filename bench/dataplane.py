"""How fast packets pass, beside what else there is: ``python bench/dataplane.py [--quick] [--json FILE]``, as root.

In one run, side by side and in rounds that alternate: a bare XDP bounce, the cut-through with ten thousand and a
million sessions, the engine over AF_XDP, raw and UDP sockets, and the kernel's own forwarding with nftables
and conntrack (``bench/nftables.conf``), which does without GENEVE. The device under test has one processor, with
NAPI, worker and store's thread; generator, receiver and store have the other one. Exit status 3: the baselines
are not what this machine can do when it is quiet, so that nothing here counts.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
import time
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parent.parent
PLACES = [str(ROOT / "src"), str(ROOT)]
sys.path[:0] = [place for place in PLACES if place not in sys.path]
# For the processes that are started.
os.environ["PYTHONPATH"] = os.pathsep.join([*PLACES, os.environ.get("PYTHONPATH", "")])

from bench.rig.contenders import Rig  # noqa: E402  (the path has to be set before)
from bench.rig.plan import SIZES, Bench  # noqa: E402
from everwall.warm import FIREWALL, warm  # noqa: E402

EXIT_NOT_SANE = 3


def _stop(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench/dataplane.py", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="64-byte inner packets only, within 150 s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--rounds", type=int, default=5, help="paired rounds of each measurement")
    parser.add_argument("--seconds", type=float, default=0.5, help="of one contender in one round, at most 1")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("needs root: namespaces, XDP")
    if len(os.sched_getaffinity(0)) < 2:
        parser.error("needs two processors, one for the device under test")
    command = shlex.join(["python", *sys.argv])
    began = time.monotonic()
    signal.signal(signal.SIGTERM, _stop)
    warm(print, modules=FIREWALL)
    with Rig() as rig:
        bench = Bench(rig, options.rounds, min(options.seconds, 1.0))
        bench.prepare(sockets=not options.quick)
        bench.measure([64] if options.quick else list(SIZES))
        result = {"command": command, "seconds": round(time.monotonic() - began, 1), **bench.figures()}
    print(f"\n{command}: {result['seconds']} s")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    if not result["sane"]:
        print(f"NOT SANE: {result['why_not_sane']}. Nothing here counts; is the machine quiet?")
        return EXIT_NOT_SANE
    return 0


if __name__ == "__main__":
    sys.exit(main())
