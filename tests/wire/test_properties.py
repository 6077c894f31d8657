"""The parsers against the oracle on many thousand packets, most of them wrong.

What must hold of any bytes: the same verdict, and, where the packet lives, the same descriptor and the
same key as the plain-Python reading. ``EVERWALL_SEED`` repeats a run, ``EVERWALL_CASES`` sizes one and
``EVERWALL_DEEP=1`` makes it the long one.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everwall.kernels import JIT
from everwall.verdict import Verdict
from everwall.wire import meta
from everwall.wire.fields import read8
from tests import packets
from tests.naive import flow as naive_flow
from tests.naive import wire as naive_wire
from tests.wire.mutations import BREAKERS, case, good_inner, mutated, wrapped
from tests.wire.reading import SEED, Readings

pytestmark = pytest.mark.kernel

DEEP = os.environ.get("EVERWALL_DEEP") == "1"
CASES = int(os.environ.get("EVERWALL_CASES", "100000" if DEEP else "5000"))
BATCH = 500
ROOT = Path(__file__).resolve().parents[2]


def campaign_seed() -> int:
    """A new seed for every run, or the one to repeat; printed, so that a failure shows it."""
    seed = int(os.environ.get("EVERWALL_SEED", secrets.randbits(32)))
    print(f"repeat with EVERWALL_SEED={seed}")
    return seed


def assert_same(readings: Readings, i: int, packet: bytes, bare: bool, hash_seed: int = SEED) -> Verdict:
    """Row ``i`` is what the oracle reads from ``packet``; returns the verdict."""
    outer: dict[str, int] = {"endpoint": 0, "cookie": -1, "inner": 0}
    verdict, found = Verdict.FORWARD, {}
    if not bare:
        verdict, outer = naive_wire.decapsulate(packet)
    if verdict == Verdict.FORWARD:
        verdict, found = naive_wire.parse(packet[outer["inner"] :])
    assert readings.verdicts[i].label == verdict.label, packet.hex()
    if verdict == Verdict.FORWARD:
        assert readings.outer(i) == outer, packet.hex()
        assert readings.packet(i) == found, packet.hex()
        source = (found["source"], found["sport"])
        destination = (found["destination"], found["dport"])
        family, protocol = found["family"], found["protocol"]
        key = naive_flow.key(outer["endpoint"], family, protocol, source, destination, hash_seed)
        assert readings.key(i) == key, packet.hex()
        if found["flags"]:
            segment = packet[outer["inner"] + found["transport"] :]
            assert readings.scales[i] == naive_wire.window_scale(segment), packet.hex()
    return verdict


def test_random_packets_are_read_as_the_oracle_reads_them() -> None:
    rng = Random(campaign_seed())
    seen: Counter[Verdict] = Counter()
    for first in range(0, CASES, BATCH):
        made = [case(rng, number) for number in range(first, min(first + BATCH, CASES))]
        hash_seed = rng.getrandbits(64) - (1 << 63)
        readings = Readings(made, seed=hash_seed)
        for i, packet in enumerate(made):
            seen[assert_same(readings, i, packet, False, hash_seed)] += 1
    if CASES >= 5000:
        rare = {verdict.label: seen[verdict] for verdict in BREAKERS if seen[verdict] < 100}
        assert not rare, "a campaign has to reach every drop at least 100 times"
    assert seen[Verdict.FORWARD] > CASES // 20
    assert set(seen) <= {Verdict.FORWARD, *BREAKERS}


def test_each_way_of_breaking_ends_in_the_drop_it_is_named_after() -> None:
    rng = Random(campaign_seed())
    for verdict, breaker in BREAKERS.items():
        made = [breaker(rng) for _ in range(40)]
        hits = Readings(made).verdicts.count(verdict)
        assert hits >= 30, f"{verdict.label}: {hits} of {len(made)}"


@settings(max_examples=200 if DEEP else 25)
@given(st.lists(st.binary(max_size=120), min_size=1, max_size=16), st.booleans())
def test_arbitrary_bytes_are_read_as_the_oracle_reads_them(made: list[bytes], bare: bool) -> None:
    readings = Readings(made, bare=bare)
    for i, packet in enumerate(made):
        assert_same(readings, i, packet, bare)


@settings(max_examples=400 if DEEP else 40)
@given(
    st.integers(0, 2**32),
    st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255)), min_size=1, max_size=8),
    st.integers(0, 256),
)
def test_single_bytes_of_a_good_packet_changed_and_its_end_cut_off(
    seed: int, changes: list[tuple[int, int]], cut: int
) -> None:
    """Hypothesis shrinks what it finds here to the few bytes that matter."""
    inner = bytearray(good_inner(Random(seed)))
    for at, value in changes:
        inner[at % len(inner)] = value
    if inner[0] >> 4 == 4 and inner[0] & 15 >= 5 and len(inner) >= 20:
        inner = bytearray(packets.fix_ipv4_checksum(bytes(inner)))
    made = [bytes(inner), bytes(inner[: max(0, len(inner) - cut)])]
    readings = Readings(made, bare=True)
    for i, packet in enumerate(made):
        assert_same(readings, i, packet, True)


def test_a_seed_names_its_packets() -> None:
    def make(seed: int) -> list[bytes]:
        rng = Random(seed)
        return [mutated(rng, wrapped(rng, good_inner(rng))) for _ in range(20)]

    assert make(5) == make(5)
    assert make(5) != make(6)


@pytest.mark.skipif(JIT and os.environ.get("NUMBA_BOUNDSCHECK") != "1", reason="bounds are not checked")
def test_where_bounds_are_checked_a_read_past_the_packet_is_an_error() -> None:
    """Or the runs that rely on it would prove nothing."""
    readings = Readings([packets.geneve(b"\x45")])
    assert readings.verdicts == [Verdict.IP_TRUNCATED]
    end = readings.column(0, meta.END)
    assert read8(readings.batch.data, 0, end - 1) == 0x45
    with pytest.raises(IndexError):
        read8(readings.batch.data, 0, end)


@pytest.mark.slow_compile
def test_no_read_leaves_the_packet(tmp_path: Path) -> None:
    """The campaign once more with bounds checks compiled in; the kernels' cache keeps those apart.

    Every packet ends where its array ends, so a read past it is an IndexError.
    """
    environment = os.environ | {
        "NUMBA_BOUNDSCHECK": "1",
        "NUMBA_DISABLE_JIT": "0",
        "EVERWALL_CASES": os.environ.get("EVERWALL_CASES", "20000" if DEEP else "2000"),
        "EVERWALL_CACHE_DIR": str(tmp_path),
    }
    # The marker keeps the inner run from starting itself again.
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow_compile", str(Path(__file__))]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "skipped" not in run.stdout, "the inner run has its bounds checked"
    assert any(tmp_path.iterdir()), "the inner run compiles kernels of its own"
