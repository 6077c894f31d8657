"""How fast packets pass, beside what else there is: ``python bench/dataplane.py [--quick] [--json FILE]``, as root.

In one run, side by side and in rounds that alternate: a bare XDP bounce, the cut-through with ten thousand and a
million sessions, the engine over AF_XDP, raw and UDP sockets, and the kernel's own forwarding with nftables
and conntrack (``bench/nftables.conf``), which does without GENEVE. The device under test has one processor, with
NAPI, worker and store's thread; generator, receiver and store have the other one. Exit status 3: the baselines
are not what this machine can do when it is quiet, so that nothing here counts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
for place in (ROOT / "src", ROOT):
    if str(place) not in sys.path:
        sys.path.insert(0, str(place))
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])

from bench.rig import measures  # noqa: E402  (the path has to be set before)
from bench.rig.contenders import Contender, Rig  # noqa: E402
from bench.rig.generator import Mode, Traffic  # noqa: E402
from bench.rig.measures import Openings, Round, Rounds  # noqa: E402

SANE = {"bounce_pps": 2_500_000, "kernel_pps": 300_000, "kernel_cps": 75_000}
EXIT_NOT_SANE = 3
FEW, MANY = 10_000, 1_000_000
ENGINE_SESSIONS = 2_000_000
FLOOD_RATE = 1_000_000.0
FLOOD_SHARE = 0.3
SIZES = (64, 512, 1400)
"""Of inner packets, bytes."""


class Bench:
    """The plan: what is measured, in which order, and what is kept of it."""

    def __init__(self, rig: Rig, rounds: int, seconds: float) -> None:
        self.rig, self.rounds, self.seconds = rig, rounds, seconds
        self.result: dict[str, Any] = {}
        self.openings = Openings(MANY)

    def say(self, *columns: object) -> None:
        print(*columns, flush=True)

    # The contenders ---------------------------------------------------------------------------------------

    def prepare(self, *, sockets: bool) -> None:
        """Everything that is compared, standing and with its sessions."""
        rig = self.rig
        rig.add_bounce()
        rig.add_bounce("sink", "sink")
        rig.add_forwarding()
        rig.add_node("cut-through", "xdp", FEW, cut_through=True)
        rig.add_node("cut-through 1M", "xdp", MANY, cut_through=True)
        rig.add_node("engine over AF_XDP", "xdp", ENGINE_SESSIONS, with_store=True)
        if sockets:
            rig.add_node("engine over raw sockets", "raw", ENGINE_SESSIONS)
            rig.add_node("engine over UDP sockets", "udp", ENGINE_SESSIONS)
        for name, contender in rig.contenders.items():
            if contender.program is not None:
                self.store(contender, False)
            if name not in ("bounce", "sink"):
                flows = MANY if name == "cut-through 1M" else FEW
                there = measures.set_up(rig, contender, flows)
                if there < flows * 0.999:
                    self.say(f"{name}: only {there} of {flows} sessions could be set up")
        for name, why in rig.missing.items():
            self.say(f"{name}: not available here: {why.strip().splitlines()[-1]}")

    def present(self, *names: str) -> list[Contender]:
        """Those of the names that are there."""
        return [self.rig.contenders[name] for name in names if name in self.rig.contenders]

    def store(self, contender: Contender, on: bool) -> None:
        contender.ask("resiliency", on=int(on))

    # Measurements -----------------------------------------------------------------------------------------

    def saturation(self, size: int = 64) -> Rounds:
        """All contenders at their end."""
        contenders = [c for c in self.rig.contenders.values() if c.name != "sink"]
        rounds = measures.alternate(
            self.rounds,
            {
                c.name: lambda c=c: measures.saturate(  # type: ignore[misc]
                    self.rig, c, self.seconds, MANY if c.name == "cut-through 1M" else FEW, size
                )
                for c in contenders
            },
        )
        self.say(f"\nSaturation, inner packets of {size} bytes, medians of {self.rounds} rounds")
        self.say(f"{'':28}{'packets/s':>12}{'of kernel':>11}{'of bounce':>11}{'CPU ns':>9}{'busy':>7}")
        for name, of in rounds.items():
            ns = statistics.median(each.ns_per_packet for each in of)
            busy = statistics.median(each.busy for each in of)
            kernel = measures.ratio(rounds, name, "kernel")
            bounce = measures.ratio(rounds, name, "bounce")
            self.say(
                f"{name:28}{measures.median(of):>12,.0f}{kernel:>11.2f}{bounce:>11.2f}{ns:>9.0f}{busy:>7.2f}"
            )
            self.result.setdefault("saturation", {}).setdefault(str(size), {})[name] = {
                "packets_per_second": measures.median(of),
                "of_kernel": kernel,
                "of_bounce": bounce,
                "cpu_ns_per_packet": ns,
                "busy": busy,
                "loss": statistics.median(each.count.loss() for each in of),
                "others": sum(each.count.others for each in of),
            }
        return rounds

    def generator(self) -> None:
        """How fast the generator alone is: nothing comes back."""
        sink = self.rig.contenders["sink"]
        count = self.rig.generator.run(sink.route, Traffic(), self.seconds)
        self.result["generator_pps"] = count.offered
        self.say(f"The generator alone sends {count.offered:,.0f} packets/s")


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench/dataplane.py", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="64-byte inner packets only, within 150 s")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.parse_args()


if __name__ == "__main__":
    main()
