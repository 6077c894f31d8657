"""Whom Sentinels are believed that do not all know the same. No I/O."""

from __future__ import annotations

import pytest
import redis

from everwall.store.connection import Address, StoreConfig
from everwall.store.sentinels import Named, Sentinels

FIRST, SECOND, THIRD = (Address("127.0.0.1", port) for port in (7001, 7002, 7003))
FORMER, PRESENT = Address("127.0.0.1", 6379), Address("127.0.0.1", 6380)


def state(primary: Address, epoch: int) -> dict:
    flags = {"is_master": True, "is_sdown": False, "is_odown": False, "num-slaves": 1}
    return {
        "ip": primary.host,
        "port": primary.port,
        "config-epoch": epoch,
        "num-other-sentinels": 2,
        **flags,
    }


@pytest.fixture
def asked(monkeypatch):
    """Three Sentinels: (what they say, who was asked)."""
    told: dict[Address, dict | Exception] = {}
    order: list[Address] = []

    def ask(_: Sentinels, address: Address) -> dict:
        order.append(address)
        said = told[address]
        if isinstance(said, Exception):
            raise said
        return said

    monkeypatch.setattr(Sentinels, "ask", ask)
    return told, order


def sentinels() -> Sentinels:
    return Sentinels(StoreConfig(sentinels=(FIRST, SECOND, THIRD), service="sessions", tls=False))


def test_one_that_was_cut_off_before_a_failover_is_not_believed(asked):
    told, _ = asked
    told |= {FIRST: state(FORMER, 1), SECOND: state(PRESENT, 2), THIRD: state(PRESENT, 2)}
    assert sentinels().find() == Named(PRESENT, 2)


def test_most_of_them_are_enough_and_one_that_is_gone_is_waited_for_once(asked):
    told, order = asked
    told |= {FIRST: redis.TimeoutError("gone"), SECOND: state(PRESENT, 2), THIRD: state(PRESENT, 2)}
    all_three = sentinels()
    all_three.find()
    assert order == [FIRST, SECOND, THIRD]
    order.clear()
    all_three.find()
    assert order == [SECOND, THIRD], "without it"
    told[SECOND] = redis.TimeoutError("gone too")
    assert all_three.find() == Named(PRESENT, 2), "one that is left is better than none"


def test_where_none_knows_it_each_says_why(asked):
    told, _ = asked
    down = {**state(FORMER, 1), "is_sdown": True}
    told |= {FIRST: redis.TimeoutError("gone"), SECOND: down, THIRD: state(Address("10.0.0.5", 6379), 2)}
    with pytest.raises(
        redis.ConnectionError, match=r"gone.*no living primary.*10\.0\.0\.5:6379 is not on loop"
    ):
        sentinels().find()
