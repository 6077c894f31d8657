"""Store time: told by the store, reckoned by a node, and never going back."""

from __future__ import annotations

import random

import pytest
import redis

from everwall.limits import (
    CLOCK_AHEAD_MAX_S,
    CLOCK_PAUSE_S,
    CLOCK_SLEW_NS,
    CLOCK_STEP_NS_MAX,
    CLOCK_TOLERANCE_NS,
    MS_NS,
    SECOND_NS,
)
from everwall.session.state import CLOCK_CONNECTIONS, CLOCK_GUESSED, CLOCK_OFFSET
from everwall.store.clock import StoreClock
from everwall.store.memory import MemoryStore
from everwall.store.moving import store_time_s
from everwall.store.protocol import (
    CLOCK_SCRIPT,
    ErrorReply,
    Protocol,
    ProtocolError,
    clock_arguments,
    clock_command,
    clock_key,
    reply_bytes,
    store_time_ns,
)
from everwall.store.redis import make_clock
from tests.store.stores import KEYS, Memory, Node

NOW_NS = 1_900_000_000 * SECOND_NS
DAY_NS = CLOCK_AHEAD_MAX_S * SECOND_NS


# A node ------------------------------------------------------------------------------------------------------


def told_before() -> StoreClock:
    """It was NOW_NS when its monotonic clock began."""
    clock = StoreClock(words := make_clock())
    words[CLOCK_GUESSED] = 1
    clock.tell(NOW_NS, 0, 0, 0)
    return clock


def after(
    clock: StoreClock, told_ns: int, asked_ns: int, heard_ns: int, least_ns: int = 0
) -> tuple[int, int]:
    """(How far the offset moved, how often live sessions were offered) by an answer."""
    words = clock._words
    before = words[[CLOCK_OFFSET, CLOCK_CONNECTIONS]].tolist()
    clock.tell(told_ns, least_ns, asked_ns, heard_ns)
    moved, offered = (words[[CLOCK_OFFSET, CLOCK_CONNECTIONS]] - before).tolist()
    return moved, offered


def test_until_it_is_told_a_node_knows_of_no_time_that_has_come() -> None:
    clock = StoreClock(words := make_clock())
    words[CLOCK_GUESSED] = 1
    assert clock.least_ns(10**12) == 0
    clock.tell(NOW_NS, 0, 1000, 3000)
    assert (words[CLOCK_OFFSET], words[CLOCK_GUESSED]) == (NOW_NS - 2000, 0)
    assert clock.least_ns(2000) == NOW_NS - CLOCK_TOLERANCE_NS


@pytest.mark.parametrize("told_ms", [0, 30, 60])
def test_an_answer_that_took_its_time_moves_no_clock(told_ms: int) -> None:
    """The server may have read its clock at any moment between question and answer."""
    clock = told_before()
    assert after(clock, NOW_NS + told_ms * MS_NS, asked_ns=0, heard_ns=60 * MS_NS) == (0, 0)


def test_a_node_that_is_behind_moves_forward_by_what_is_certain() -> None:
    clock = told_before()
    told = NOW_NS + SECOND_NS + 90 * MS_NS
    assert after(clock, told, SECOND_NS - 20 * MS_NS, SECOND_NS + 20 * MS_NS) == (70 * MS_NS, 0)


def test_a_node_that_is_ahead_goes_slower_until_it_is_not() -> None:
    clock, ahead = told_before(), CLOCK_SLEW_NS * 5 // 2
    moves = [
        after(clock, NOW_NS + at - ahead, at, at)[0] for at in range(SECOND_NS, 5 * SECOND_NS, SECOND_NS)
    ]
    assert moves == [-CLOCK_SLEW_NS, -CLOCK_SLEW_NS, -CLOCK_SLEW_NS // 2, 0]


def test_time_that_moves_by_far_has_all_live_sessions_written_again() -> None:
    assert after(told_before(), NOW_NS + CLOCK_STEP_NS_MAX, 0, 0) == (CLOCK_STEP_NS_MAX, 0)
    assert after(told_before(), NOW_NS + CLOCK_STEP_NS_MAX + 1, 0, 0) == (CLOCK_STEP_NS_MAX + 1, 1)


def test_a_cluster_whose_time_went_back_all_the_same_is_followed() -> None:
    clock = told_before()
    least = clock.least_ns(0)
    assert after(clock, NOW_NS - 2 * DAY_NS, 0, 0, least) == (-2 * DAY_NS, 1)


@pytest.mark.parametrize("asked_ns", [SECOND_NS, SECOND_NS + 1, SECOND_NS + 999])
def test_an_answer_that_names_a_node_s_own_time_takes_it_back_no_faster_than_another(asked_ns: int) -> None:
    """The server has lost it, and is behind: it goes by what the node has said, which is in microseconds."""
    clock = told_before()
    least = clock.least_ns(asked_ns)
    told = clock_arguments(least)[0] * 1000
    assert after(clock, told, asked_ns, asked_ns, least) == (-CLOCK_SLEW_NS, 0)


def test_what_is_offered_again_is_no_connection() -> None:
    clock = StoreClock(words := make_clock())
    clock.count_connection()
    clock.offer_again()
    assert (clock.connections, words[CLOCK_CONNECTIONS]) == (1, 2)


@pytest.mark.parametrize("seed", range(20))
def test_nodes_that_ask_about_never_tell_an_earlier_time_than_anybody_did(seed: int) -> None:
    """Servers whose clocks differ, are set and lose the key; nodes with clocks of other speeds, slow ways, new ones."""
    dice = random.Random(seed)
    store, server_ns = MemoryStore(), NOW_NS
    store.execute((b"SCRIPT", b"LOAD", CLOCK_SCRIPT))
    speeds = [dice.uniform(-100e-6, 100e-6) for _ in range(3)]
    clocks = [StoreClock(make_clock()) for _ in speeds]
    true_ns, latest = 0, [0] * len(clocks)

    def local(node: int) -> int:
        return round(true_ns * (1 + speeds[node]))

    def ask(node: int) -> None:
        nonlocal true_ns
        clock, asked = clocks[node], local(node)
        least = clock.least_ns(asked)
        true_ns += dice.randrange(5 * MS_NS)
        now = (server_ns + true_ns) / SECOND_NS
        told = store_time_ns(store.execute(clock_command(b"clock", least), now))
        true_ns += dice.randrange(5 * MS_NS)
        clock.tell(told, least, asked, local(node))

    for node in range(len(clocks)):
        ask(node)
    for _ in range(400):
        event = dice.random()
        if event < 0.05:
            server_ns += dice.choice((1, -1)) * dice.choice((3, 30, 400, 90_000, 1_000_000)) * MS_NS
        elif event < 0.07:
            store.keys.clear()
            ask(0)  # somebody who lives is there before anybody new
        elif event < 0.1:
            node = dice.randrange(len(clocks))
            clocks[node], latest[node] = StoreClock(make_clock()), 0
            ask(node)
        for node in range(len(clocks)):
            true_ns += dice.randrange(SECOND_NS // 3)
            ask(node)
            now = local(node) + int(clocks[node]._words[CLOCK_OFFSET])
            assert now >= latest[node], f"seed {seed}: the time of node {node} went back"
            assert now >= max(latest) - 2 * CLOCK_TOLERANCE_NS, f"seed {seed}: node {node} lags"
            latest[node] = now
    assert max(latest) >= server_ns + true_ns - SECOND_NS, "nor does it stay behind the server's"


# The store ---------------------------------------------------------------------------------------------------


def ask_ns(store, least_ns: int = 0) -> int:
    """A node asks for store time."""
    store.ask((b"SCRIPT", b"LOAD", CLOCK_SCRIPT))
    return store_time_ns(store.ask(clock_command(clock_key("test"), least_ns)))


def server_ns(store) -> int:
    return store_time_ns(store.ask((b"TIME",)))


def put(store, latest_ns: int, ahead_ns: int) -> None:
    """What is under the key."""
    store.ask((b"SET", clock_key("test"), b"%d %d" % (latest_ns // 1000, ahead_ns // 1000)))


def kept_ns(store) -> tuple[int, int]:
    """The latest time that was told, and how far it was ahead of the server's clock."""
    latest, ahead = map(int, store.ask((b"GET", clock_key("test"))).split())
    return 1000 * latest, 1000 * ahead


def test_as_long_as_nothing_is_wrong_it_is_the_server_s_clock(store):
    before = server_ns(store)
    told = ask_ns(store)
    assert before <= told <= server_ns(store)
    assert kept_ns(store) == (told, 0)
    assert before // SECOND_NS <= store_time_s(store.ask, "test"), "operators go by the same"


def test_a_server_s_clock_that_is_set_back_takes_nobody_along(store):
    latest = server_ns(store) // 1000 * 1000 + 500 * SECOND_NS  # as somebody was told a moment ago
    put(store, latest, 0)
    assert ask_ns(store, latest - 5 * MS_NS) == latest
    assert ask_ns(store) >= latest, "and from there it goes on"
    assert kept_ns(store)[1] > 400 * SECOND_NS


def test_a_node_that_joins_right_then_is_told_what_is_later_than_the_others_may_have_come_to_by_themselves(
    store,
):
    """They ask once a second: the last to be told may have opened a session since."""
    latest = server_ns(store) // 1000 * 1000 + 500 * SECOND_NS
    put(store, latest, 0)
    assert ask_ns(store) == latest + CLOCK_PAUSE_S * SECOND_NS


def test_a_replica_that_takes_over_with_an_earlier_clock_hears_of_the_time_from_whoever_lives(store):
    least = server_ns(store) // 1000 * 1000 + 500 * SECOND_NS
    ask_ns(store)
    assert ask_ns(store, least) == least
    newcomer = ask_ns(store)
    assert newcomer >= least


def test_a_clock_that_is_put_right_again_brings_no_leap(store):
    """It was 500 s behind, and store time that far ahead; then it was set forward, to where store time is."""
    latest = server_ns(store)
    put(store, latest, 500 * SECOND_NS)
    told = ask_ns(store)
    assert latest <= told < latest + 400 * SECOND_NS
    assert kept_ns(store)[1] < SECOND_NS, "it need not be ahead any more"


def test_a_clock_that_is_set_forward_is_followed(store):
    put(store, server_ns(store) - 500 * SECOND_NS, 0)
    before = server_ns(store)
    assert before <= ask_ns(store) <= server_ns(store)


def test_a_server_that_is_full_tells_the_time(store):
    if isinstance(store, Memory):
        pytest.skip("the twin has all the memory there is")
    latest = ask_ns(store)
    store.client.config_set("maxmemory", 1)
    try:
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            store.client.set("more", 1)
        told = store_time_ns(store.ask(clock_command(clock_key("test"), 0)))
        assert kept_ns(store) == (told, 0)
        assert told > latest
    finally:
        store.client.config_set("maxmemory", 0)


def test_by_more_than_a_day_it_is_ahead_of_no_server(store):
    """Somebody has written nonsense there, or the server was in another year for a moment."""
    put(store, server_ns(store) + DAY_NS + 60 * SECOND_NS, DAY_NS)
    before = server_ns(store)
    told = ask_ns(store, before + DAY_NS + 60 * SECOND_NS)
    assert before <= told <= server_ns(store)


@pytest.mark.parametrize(
    "text", [b"", b"nonsense", b"-5 3", b"1 2 3", b"9" * 400 + b" 1", b"1 " + b"9" * 400, b"1e300 1", b" 1 1"]
)
def test_what_is_no_time_is_written_over(store, text):
    if isinstance(store, Memory):
        pytest.skip("the twin reads what the script has written")
    store.ask((b"SET", clock_key("test"), text))
    before = server_ns(store)
    assert before <= ask_ns(store) <= server_ns(store)
    store.ask((b"DEL", clock_key("test")))
    store.ask((b"HSET", clock_key("test"), b"a", b"b"))
    assert before <= ask_ns(store) <= server_ns(store), "a key of another kind as well"
    assert kept_ns(store)[1] == 0


@pytest.mark.parametrize("seed", range(10))
def test_the_script_says_what_its_twin_says(store, seed):
    if isinstance(store, Memory):
        pytest.skip("that is the twin")
    dice = random.Random(seed)
    far = (0, 500, -500, 5_000, DAY_NS // SECOND_NS - 500, DAY_NS // SECOND_NS + 500)
    for _ in range(20):
        now = server_ns(store)
        latest = now + dice.choice(far) * SECOND_NS
        # Not near the moment at which one pause or another is over.
        ahead = dice.choice((0, 1_700, 20_000)) * SECOND_NS
        least = dice.choice((0, now + dice.choice(far) * SECOND_NS))
        put(store, latest, ahead)
        before = server_ns(store)
        told = ask_ns(store, least)
        behind = server_ns(store)

        def twin(at_ns: int, put_there=(latest, ahead), least=least) -> int:
            memory = MemoryStore()
            memory.execute((b"SCRIPT", b"LOAD", CLOCK_SCRIPT))
            memory.keys[b"clock"] = b"%d %d" % tuple(number // 1000 for number in put_there)
            return store_time_ns(memory.execute(clock_command(b"clock", least), at_ns / SECOND_NS))

        slack = 2000  # the twin's seconds are a float
        assert twin(before) - slack <= told <= twin(behind) + slack, f"seed {seed}"


# The conversation --------------------------------------------------------------------------------------------


def probed(node: Node, least_ns: int = 0) -> int:
    """What a node is told that asks as it does once a second."""
    batch = node.protocol.room(1)
    node.protocol.probe(batch, least_ns=least_ns)
    node.protocol.decode(batch, b"".join(map(reply_bytes, node.store.send(batch.commands))), 0)
    assert batch.said == b"64"
    return batch.told_ns


def test_a_node_is_told_the_time_and_the_layout_when_it_connects_and_all_the_time(store):
    node = Node(store)
    assert node.greeting.is_agreed
    assert probed(node) >= node.greeting.time_ns
    least = node.greeting.time_ns // 1000 * 1000 + 500 * SECOND_NS
    assert probed(node, least) == least
    assert Node(store).greeting.time_ns >= least, "so is one that joins"


def test_a_server_that_has_lost_the_script_is_taught_it_with_the_next_question(store):
    node = Node(store)
    store.ask((b"SCRIPT", b"FLUSH"))
    assert probed(node) == 0
    assert probed(node) >= node.greeting.time_ns
    batch = node.protocol.room(1)
    node.protocol.probe(batch, least_ns=0)
    assert len(batch.commands) == 2


def test_a_server_that_keeps_no_time_tells_its_own():
    """It takes no writes for want of replicas, or because it cannot save: what it has can be looked up."""
    refused = ErrorReply("NOREPLICAS Not enough good replicas to write.")
    greeting = Protocol(KEYS, "test", 64).greet([b"OK", b"64", b"", [b"5", b"0"], b"sha", refused])
    assert (greeting.time_ns, greeting.is_agreed) == (5 * SECOND_NS, False)


@pytest.mark.parametrize(
    "told", [[b"99999999999999999", b"0"], [b"-1", b"0"], [b"1", b"1000000"], [b"1"], None]
)
def test_a_time_that_cannot_be_is_no_answer(told):
    """It would not fit the clock that the worker reads, and end the thread that puts it there."""
    with pytest.raises(ProtocolError, match="TIME was answered by"):
        Protocol(KEYS, "test", 64).greet([b"OK", b"64", b"", [b"5", b"0"], b"sha", told])
