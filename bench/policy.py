"""What policy costs a new session: ``python bench/policy.py [--quick] [--json FILE]``.

Policies of 10, 1,000 and 10,000 rules as a company has them (``tests/company.py``: every field is used, from a seed),
read from YAML and compiled; then packets, every one another, through the compiled matcher in one loop on one core. Of
the packets 30 % have to fall to a default rule, and half of the others to one of the later three quarters of 10,000
rules: where they do not, nothing here counts (exit status 1). A sample of what is decided is held against the plain
reading of the rules. Times are the processor's, for one thread: what else the machine does takes part only by the
caches that it empties. In a loop of nothing but look-ups a policy stays in them; ``match_us_cold`` is of batches before
each of which all caches were read over, as by a worker with other things to do, and has no bound.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parent.parent
PLACES = [str(ROOT / "src"), str(ROOT)]
sys.path[:0] = [place for place in PLACES if place not in sys.path]

from bench import bounds  # noqa: E402  (the path has to be set before)
from everwall.policy.compile import compile_policy  # noqa: E402
from everwall.policy.explain import explain  # noqa: E402
from everwall.policy.match import CompiledPolicy  # noqa: E402
from everwall.policy.model import Policy  # noqa: E402
from everwall.policy.rules import read_policy  # noqa: E402
from tests import company  # noqa: E402

SIZES = {"10": 10, "1k": 1_000, "10k": 10_000}
SEED = 1
PACKETS = 200_000
QUICK_ROUNDS, ROUNDS = 7, 25
BOUNDS = {
    "match_us_10": ("<=", 0.3),
    "match_us_10k": ("<=", 1.0),
    "match_us_ipv6_10k": ("<=", 1.0),
    "compile_s_10k": ("<=", 5),
    "default_share_10k": (">=", 0.3),
    "median_index_10k": (">=", 2_501),
}
"""What the project holds its figures against; the last two say that the question was hard enough."""
_SAMPLE = 50
_CALIBRATION_WORDS = 1 << 20
_CACHES_BYTES = 64 << 20
_COLD_BATCHES, _COLD_BATCH = 100, 64


@numba.njit(nogil=True, error_model="numpy")
def _follow(chain, steps):  # type: ignore[no-untyped-def]
    at = 0
    for _ in range(steps):
        at = chain[at]
    return at


def calibration() -> float:
    """ns of one read that waits for the one before, anywhere in 8 MiB: what such a machine's memory is like."""
    order = np.random.default_rng(1).permutation(_CALIBRATION_WORDS)
    chain = np.zeros(_CALIBRATION_WORDS, np.int64)
    chain[order] = np.roll(order, 1)
    _follow(chain, 10)
    best = float("inf")
    for _ in range(3):
        began = time.thread_time()
        _follow(chain, _CALIBRATION_WORDS)
        best = min(best, time.thread_time() - began)
    return 1e9 * best / _CALIBRATION_WORDS


def matching(compiled: CompiledPolicy, rows: npt.NDArray[np.int64], rounds: int) -> tuple[list[float], Any]:
    """Microseconds per packet of each round, and the deciding row of every packet."""
    found = np.zeros(len(rows), np.int64)
    company.match_all(compiled, rows, found)
    took = []
    for _ in range(rounds):
        began = time.thread_time()
        company.match_all(compiled, rows, found)
        took.append(1e6 * (time.thread_time() - began) / len(rows))
    return took, found


def matching_cold(compiled: CompiledPolicy, rows: npt.NDArray[np.int64]) -> float:
    """Microseconds per packet of batches that find nothing of the policy in a cache."""
    memory, found = np.zeros(_CACHES_BYTES // 8, np.int64), np.zeros(_COLD_BATCH, np.int64)
    took = []
    for k in range(_COLD_BATCHES):
        memory += 1
        batch = rows[k * _COLD_BATCH : (k + 1) * _COLD_BATCH]
        began = time.thread_time_ns()
        company.match_all(compiled, batch, found)
        took.append((time.thread_time_ns() - began) / 1000 / _COLD_BATCH)
    return float(np.median(took))


def measure_size(rules: int, rounds: int) -> tuple[dict[str, float], Policy, Any, Any]:
    """The figures of a policy with so many rules; and the policy, the packets and what was decided about them."""
    text = company.policy_text(rules, SEED)
    began = time.thread_time()
    policy = read_policy("company.yaml", text)
    read = time.thread_time() - began
    compiling = []
    for _ in range(3):
        began = time.thread_time()
        compiled, _ = compile_policy(policy)
        compiling.append(time.thread_time() - began)
    rows = company.packets(policy, PACKETS, SEED)
    took, found = matching(compiled, rows, rounds)
    defaults = found >= len(compiled.rules) - 2
    six = rows[:, 2] == 6
    figures = {
        "match_us": float(np.median(took)),
        "match_us_ipv4": float(np.median(matching(compiled, rows[~six], 3)[0])),
        "match_us_ipv6": float(np.median(matching(compiled, rows[six], 3)[0])),
        "match_us_cold": matching_cold(compiled, rows),
        "read_s": read,
        "compile_s": float(np.median(compiling)),
        "bytes": float(sum(array.nbytes for array in compiled)),
        "sets": float(len(compiled.blocks)),
        "lines": float(len(compiled.lines)),
        "default_share": float(defaults.mean()),
        "median_index": float(np.median(found[~defaults])) if not defaults.all() else 0.0,
    }
    return figures, policy, rows, found


def run(rounds: int) -> dict[str, Any]:
    """Everything. Raises RuntimeError where the compiled policy and the plain reading do not agree."""
    found: dict[str, Any] = {"calibration_read_ns": calibration()}
    for name, rules in SIZES.items():
        figures, policy, rows, decided = measure_size(rules, rounds)
        found |= {f"{what}_{name}": figure for what, figure in figures.items()}
        zones = [zone.name for zone in policy.zones]
        for k in range(0, len(rows), len(rows) // _SAMPLE):
            plain = explain(policy, company.question(rows[k], zones)).row
            if plain != decided[k]:
                raise RuntimeError(f"{rules} rules: row {decided[k]} decides about {rows[k]}, not {plain}")
    return found


def measure(seconds: float) -> dict[str, float]:
    """For ``python -m bench``: nanoseconds and seconds of the same."""
    found = run(QUICK_ROUNDS)
    return {
        "ns per match, 10 rules": 1000 * found["match_us_10"],
        "ns per match, 1,000 rules": 1000 * found["match_us_1k"],
        "ns per match, 10,000 rules": 1000 * found["match_us_10k"],
        "ns per match, 10,000 rules, cold": 1000 * found["match_us_cold_10k"],
        "ms to read 10,000 rules": 1000 * found["read_s_10k"],
        "ms to compile 10,000 rules": 1000 * found["compile_s_10k"],
        "bytes of 10,000 rules": found["bytes_10k"],
        "calibration: ns per dependent read in 8 MiB": found["calibration_read_ns"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench/policy.py", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds, within 150 s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    began = time.monotonic()
    try:
        found = run(QUICK_ROUNDS if options.quick else ROUNDS)
    except RuntimeError as error:
        print(f"NOTHING HERE COUNTS: {error}")
        return 1
    held = bounds.held_against(BOUNDS, found)
    for name, value in found.items():
        print(f"{name:28}{value:>16,.3f}")
    bounds.show(held)
    command, seconds = shlex.join(["python", *sys.argv]), round(time.monotonic() - began, 1)
    print(f"\n{command}: {seconds} s, on {bounds.machine()}")
    if options.json:
        result = {
            "command": command,
            "seconds": seconds,
            **found,
            "bounds": held,
            "machine": bounds.machine(),
        }
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    hard_enough = held["default_share_10k"]["ok"] and held["median_index_10k"]["ok"]
    return 0 if hard_enough else 1


if __name__ == "__main__":
    sys.exit(main())
