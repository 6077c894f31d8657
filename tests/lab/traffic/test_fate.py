"""A connection is judged by the answer to its probe, and by each probe again."""

from __future__ import annotations

from everwall.lab.traffic.fate import PROBE_DEADLINE_S, Fate
from everwall.limits import SECOND_NS

LATE_NS = int((PROBE_DEADLINE_S + 1) * SECOND_NS)


def probed(answered_ns: int) -> Fate:
    fate = Fate()
    fate.probed_ns, fate.answered_ns = 1, answered_ns
    return fate


def test_a_probe_without_an_answer_in_time_is_the_end() -> None:
    assert probed(5).lost(LATE_NS) == ""
    assert probed(0).lost(LATE_NS) == "no answer"
    assert probed(LATE_NS + 2).lost(2 * LATE_NS) == "answered too late"


def test_who_answered_is_asked_again_and_not_lost_before_the_next_probe() -> None:
    fate = probed(5)
    fate.forget_probe()
    assert (fate.probed_ns, fate.answered_ns) == (0, 0)
    assert fate.lost(LATE_NS) == ""


def test_whom_the_first_probe_condemns_no_second_one_acquits() -> None:
    for fate in (probed(0), probed(LATE_NS + 2)):
        fate.forget_probe()
        assert fate.probed_ns == 1
        assert fate.lost(2 * LATE_NS)
