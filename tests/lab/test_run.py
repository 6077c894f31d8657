"""After the event: how long a run waits for its connections, and when a victim may come back."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from everwall.lab import run
from everwall.lab.measure import Connection
from everwall.lab.run import Experiment, Options
from everwall.lab.traffic.fate import PROBE_DEADLINE_S

SECOND_NS = 1_000_000_000


class Told:
    """A run at its event: two connections on fw2; what traffic and load balancer say is told by the time since then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail: str) -> None:
        self.now = 0.0
        self.probed_after = 1.0
        """Seconds from the word to probe until the last has done it."""
        self.told_to_probe = 0.0
        self.left_at = 1.0
        self.answer = False
        self.back: list[float] = []

        def sleep(seconds: float) -> None:
            self.now += seconds

        clock = SimpleNamespace(monotonic=lambda: self.now, sleep=sleep)
        monkeypatch.setattr(run, "time", clock)
        site = SimpleNamespace(traffic="tcp", rung="root")
        self.experiment = Experiment(Options(fail=fail), SimpleNamespace(), site, True)  # type: ignore[arg-type]
        self.experiment.run.victim = "fw2"
        self.experiment.run.connections = [Connection(n, "", f"10.10.0.10:{n}", "fw2") for n in (1, 2)]
        self.experiment.cluster = self  # type: ignore[assignment]

    # What the run asks ------------------------------------------------------------------------------------

    def flow_targets(self) -> dict[tuple[int, str], str]:
        carriers = {1: "fw1", 2: "fw1" if self.now >= self.left_at else "fw2"}
        return {(6, f"10.10.0.10:{number}"): name for number, name in carriers.items()}

    def bring_back(self, how: str, victim: str) -> int:
        self.back.append(self.now)
        return int(self.now * SECOND_NS) or 1

    def target_events(self) -> list[dict[str, Any]]:
        back = self.back[-1] + 0.4
        healthy = {"target": "fw2", "state": "healthy", "time_ns": int(back * SECOND_NS)}
        return [healthy] if self.now >= back else []

    def probe(self) -> None:
        self.told_to_probe = self.now

    def progress(self) -> dict[str, int]:
        since = self.now - self.told_to_probe - self.probed_after
        probed = 2 if since >= 0 else 1
        decided = 1 if since < 0 else 2 if self.answer else 1 + (since > PROBE_DEADLINE_S)
        answered = decided if self.answer else 1
        return {"probed": probed, "answered": answered, "lost": decided - answered}

    def wait(self, comes_back: float = 0.0) -> float:
        """How long the run, of which 6 s are left, waits."""
        self.experiment.comes_back = comes_back
        self.experiment._wait_for_answers(self, 6.0, lambda _: None)  # type: ignore[arg-type]
        return self.now


@pytest.fixture
def at_event(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Told]:
    return lambda fail: Told(monkeypatch, fail)


def test_it_waits_for_the_end_and_for_the_last_answer(at_event: Callable[[str], Told]) -> None:
    told = at_event("kill")
    told.answer = True
    assert told.wait() == pytest.approx(6.0, abs=0.5)
    told = at_event("kill")
    assert told.wait() == pytest.approx(1.0 + PROBE_DEADLINE_S, abs=0.5)


def test_a_client_that_stood_still_has_as_long_for_its_answers(at_event: Callable[[str], Told]) -> None:
    """Else who is not lost yet counts as neither lost nor answered."""
    told = at_event("kill")
    told.probed_after = 4.0
    assert told.wait() == pytest.approx(4.0 + PROBE_DEADLINE_S, abs=0.5)
    assert told.progress()["lost"] == 1


def test_one_that_never_probes_does_not_keep_it_for_ever(at_event: Callable[[str], Told]) -> None:
    told = at_event("kill")
    told.probed_after = 10_000.0
    assert told.wait() < run.PROBED_S + run.DECIDED_S + 1


def test_a_victim_comes_back_at_its_time(at_event: Callable[[str], Told]) -> None:
    told = at_event("hang")
    told.answer = True
    assert told.wait(comes_back=3.0) == pytest.approx(6.0, abs=0.5)
    assert told.back == [pytest.approx(3.0, abs=0.3)]


def test_a_victim_does_not_come_back_before_its_last_connection_has_left_it(
    at_event: Callable[[str], Told],
) -> None:
    """A quiet one would find it again, as if nothing had been; without resiliency it would not be lost."""
    told = at_event("partition")
    told.answer, told.left_at = True, 20.0
    told.wait(comes_back=3.0)
    assert told.back == [pytest.approx(20.0, abs=0.3)]
    assert told.now == pytest.approx(21.0, abs=0.5), "and every connection has answered once more"


def test_a_victim_that_nobody_leaves_comes_back_all_the_same(at_event: Callable[[str], Told]) -> None:
    told = at_event("isolate")
    told.answer, told.left_at = True, 10_000.0
    told.wait(comes_back=3.0)
    assert told.back == [pytest.approx(run.PROBED_S, abs=0.3)]
