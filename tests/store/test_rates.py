"""What an operator sees of the traffic to the store: how much, and how far behind."""

from __future__ import annotations

from everwall.limits import RATES_S
from everwall.session.image import LOOKUP, WRITE_FIRST
from everwall.store.backlog import Backlog
from everwall.store.lag import Lag
from everwall.store.rates import Rates
from tests.store.stores import KEYS, asking, sessions


def facts(written: int, refreshed: int = 0, deleted: int = 0, looked_up: int = 0) -> dict[str, int]:
    return {
        "written": written,
        "refreshed": refreshed,
        "deleted": deleted,
        "looked_up": looked_up,
        "found": 0,
    }


def test_rates_are_those_of_the_last_seconds():
    rates = Rates()
    assert rates.per_s()["writes_per_s"] == 0
    for second in range(20):
        rates.note(100.0 + second, facts(1000 * second))
    rates.note(120.0, facts(19_000 + 600 + 300 + 100, refreshed=300, deleted=100, looked_up=50))
    assert rates.per_s() == {
        "writes_per_s": ((RATES_S - 1) * 1000 + 600) // RATES_S,
        "refreshes_per_s": 300 // RATES_S,
        "deletes_per_s": 100 // RATES_S,
        "lookups_per_s": 50 // RATES_S,
    }


def test_without_a_store_there_are_no_rates():
    rates = Rates()
    rates.note(1.0, {})
    rates.note(2.0, {})
    assert set(rates.per_s().values()) == {0}


def waiting(count: int) -> Backlog:
    backlog = Backlog(KEYS)
    backlog.put(asking(sessions(count), WRITE_FIRST))
    return backlog


def test_a_change_that_waits_grows_old_and_is_forgotten_once_it_was_sent():
    backlog, lag = waiting(10), Lag()
    lag.note(1000, [backlog], True)
    assert lag.ns(1500) == 500
    backlog.take(9)
    lag.note(2000, [backlog], True)
    assert lag.ns(2000) == 1000, "one of them waits still"
    backlog.take(1)
    lag.note(3000, [backlog], True)
    assert lag.ns(3000) == 0


def test_a_backlog_that_is_never_empty_is_not_old_for_that():
    backlog, lag = waiting(10), Lag()
    for now in range(0, 10_000, 100):
        lag.note(now, [backlog], True)
        backlog.put(asking(sessions(5, seed=now + 2), WRITE_FIRST))
        backlog.take(5)
        assert lag.ns(now) <= 300


def test_what_waits_for_a_connection_is_no_younger_for_being_put_back():
    backlog, lag = waiting(10), Lag()
    lag.note(1000, [backlog], False)
    backlog.keep_writes(5)
    lag.note(5000, [backlog], False)
    assert lag.ns(5000) == 4000


def test_look_ups_are_not_changes():
    backlog, lag = Backlog(KEYS), Lag()
    backlog.put(asking(sessions(3), LOOKUP))
    lag.note(1000, [backlog], True)
    assert lag.ns(9000) == 0
    lag.note(9000, [], True)
    assert lag.ns(9999) == 0
