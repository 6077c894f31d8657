"""``python -m everwall.sim``: one seed again, or many.

python -m everwall.sim --seed 17             the run of a seed; ends with 1 when a promise is broken
python -m everwall.sim --seeds 200           seeds 1 to 200, two at a time
python -m everwall.sim --mode strict ...     every rule strict, and many kills
python -m everwall.sim                       a seed that nobody has chosen
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from random import SystemRandom

from everwall.sim.cluster import MIXED, STRICT, Report, SimulationFailure, simulate

JOBS = 2


def _run(seed: int, mode: str) -> Report | str:
    """The report of a seed, or the words of its failure."""
    try:
        return simulate(seed, mode=mode)
    except SimulationFailure as failure:
        return str(failure)
    except Exception as error:
        raise RuntimeError(
            f"seed {seed}: the simulator itself failed; see it again: make sim SEED={seed}"
        ) from error


def _runs(seeds: range, jobs: int, mode: str) -> Iterator[Report | str]:
    """The outcome of each seed, in order."""
    run = partial(_run, mode=mode)
    if jobs == 1 or len(seeds) == 1:
        yield from map(run, seeds)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(run, seeds)


def main(arguments: list[str] | None = None) -> int:
    """0 when every seed kept all promises, 1 when one did not."""
    parser = argparse.ArgumentParser(
        prog="everwall.sim", description="Simulated clusters, judged by checkers."
    )
    parser.add_argument("--seed", type=int, help="run this seed only")
    parser.add_argument("--seeds", type=int, metavar="N", help="run N seeds")
    parser.add_argument("--first", type=int, default=1, metavar="SEED", help="the first of them (1)")
    parser.add_argument(
        "--mode", choices=(MIXED, STRICT), default=MIXED, help="which rules are strict: some, or all"
    )
    parser.add_argument("--jobs", type=int, default=JOBS, help=f"processes ({JOBS})")
    options = parser.parse_args(arguments)
    if options.seeds is not None:
        seeds = range(options.first, options.first + options.seeds)
        print(f"seeds {seeds.start} to {seeds.stop - 1}, {options.jobs} at a time", flush=True)
    else:
        seed = SystemRandom().randrange(10**6) if options.seed is None else options.seed
        seeds = range(seed, seed + 1)
        print(f"seed {seed}", flush=True)

    reports: list[Report] = []
    failures = 0
    for number, outcome in enumerate(_runs(seeds, options.jobs, options.mode), 1):
        print(f"[{number}/{len(seeds)}] {outcome}", flush=True)
        if isinstance(outcome, Report):
            reports.append(outcome)
        else:
            failures += 1
    if len(seeds) > 1:
        print(_summary(reports, failures))
    return 1 if failures else 0


def _summary(reports: list[Report], failures: int) -> str:
    def total(name: str) -> int:
        return sum(getattr(report, name) for report in reports)

    drops = Counter[str]()
    for report in reports:
        drops.update(report.drops)
    return "\n".join(
        [
            f"{len(reports) + failures} seeds, {failures} failed: {total('seconds') / 3600:.1f} simulated hours, "
            f"{total('flows')} flows, {total('packets')} packets, {total('rounds')} round trips",
            f"sessions: {total('restored')} restored, {total('adopted')} adopted, {total('demoted')} demoted, "
            f"{total('denied')} kept out by a changed policy; "
            f"{total('lost')} flows lost that were not stored or not allowed when their node failed",
            f"{total('demanded')} sessions that the store had to have when their node failed, and had; "
            f"strict mode: {total('acknowledged')} acknowledged, {total('lost_by_store')} of them lost by the store",
            f"{total('answered')} answers to refused packets",
            "dropped: " + ", ".join(f"{name} {times}" for name, times in drops.most_common()),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
