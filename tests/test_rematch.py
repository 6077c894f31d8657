"""Another policy comes, and sessions are alive: those it refuses end, the others go on as if nothing had been."""

from __future__ import annotations

import numpy as np
import pytest

from everwall import modes
from everwall.limits import REMATCH_SESSIONS, REMATCH_SLOTS
from everwall.policy.compile import compile_policy
from everwall.policy.match import CompiledPolicy, allow_all, deny_all, rule_id
from everwall.policy.rules import read_policy
from everwall.session import image, state
from everwall.session import table as t
from everwall.verdict import Verdict
from tests import packets
from tests.cluster import Cluster, Node
from tests.conversations import Connection

pytestmark = pytest.mark.kernel

FORWARD, POLICY_DENY = Verdict.FORWARD, Verdict.POLICY_DENY
CLIENT, SERVER = "10.0.0.1", "10.0.1.1"
PEER6, SERVER6 = "2001:db8::5", "2001:db8:1::9"


def policy(*rules: str, zones: str = "") -> CompiledPolicy:
    """Rules as in a file, each with what it need not say left out."""
    lines = []
    for number, rule in enumerate(rules):
        keys = dict(part.split(": ", 1) for part in rule.split("; "))
        whole = {"name": f"rule {number}", "source": "any", "destination": "any", "service": "any"} | keys
        lines.append("  - {" + ", ".join(f"{key}: {value}" for key, value in whole.items()) + "}")
    return compile_policy(read_policy("p.yaml", f"{zones}\nrules:\n" + "\n".join(lines) + "\n"))[0]


WEB = policy("name: web; service: tcp/80; action: allow", "name: dns; service: udp/53; action: allow")


def node_with(former: CompiledPolicy, **config: object) -> Node:
    return Cluster().node(former, **config)


def pass_over(node: Node) -> None:
    """Let the hand pass over the whole table."""
    while node.engine.sessions_state.words[state.REMATCH_LEFT]:
        node.tick()


def test_a_session_that_is_refused_now_ends_and_leaves_the_store() -> None:
    node = node_with(WEB)
    talk = Connection()
    node.judge(*talk.handshake())
    node.judge(packets.udp(CLIENT, SERVER, 5000, 53), packets.udp(SERVER, CLIENT, 53, 5000))
    assert len(node.cluster.records()) == 2
    node.engine.replace_policy(
        policy("name: web; service: tcp/443; action: allow", "name: dns; service: udp/53; action: allow")
    )
    pass_over(node)
    node.serve()
    assert node.ends() == ["policy-deny"]
    assert [session["dport"] for session in node.sessions()] == [53]
    assert len(node.cluster.records()) == 1, "nobody restores it"
    assert node.engine.counters["sessions-ruled-out"] == 1
    assert node.judge(talk.data()) == [Verdict.NON_SYN_TCP]
    assert node.judge(Connection(sport=40_001).handshake()[0]) == [POLICY_DENY]


def test_a_session_that_another_rule_allows_now_has_that_rule_and_is_not_touched() -> None:
    node = node_with(WEB)
    talk = Connection()
    node.judge(*talk.handshake(), talk.data())
    before = node.only_session()
    node.engine.outbox()
    moved = policy("service: tcp/22; action: deny", "name: all of it; action: allow; resiliency: strict")
    node.engine.replace_policy(moved)
    pass_over(node)
    after = node.only_session()
    assert after.pop("rule") == rule_id("all of it")
    before.pop("rule")
    assert after == before, "nothing else has changed"
    assert node.engine.sessions_state.table.short[:, t.MODE].max() == modes.STRICT
    assert len(node.engine.outbox()) == 0, "the store hears of the rule with the next refresh"
    assert node.judge(*talk.exchange(3)) == [FORWARD] * 6


def test_the_client_is_asked_about_and_not_whoever_spoke_last() -> None:
    node = node_with(allow_all())
    # One session in each direction of the canonical order.
    node.judge(packets.udp(CLIENT, SERVER, 5000, 53), packets.udp(SERVER, CLIENT, 53, 5000))
    node.judge(packets.udp(SERVER, CLIENT, 6000, 53), packets.udp(CLIENT, SERVER, 53, 6000))
    node.judge(packets.udp(PEER6, SERVER6, 7000, 53), packets.udp(SERVER6, PEER6, 7000, 53))
    only = policy(
        f'source: ["{CLIENT}", "{PEER6}"]; destination: ["{SERVER}", "{SERVER6}"]; service: udp/53; action: allow'
    )
    node.engine.replace_policy(only)
    pass_over(node)
    assert {session["src"] for session in node.sessions()} == {CLIENT, PEER6}
    assert node.ends() == ["policy-deny"] * 2, "the answer to the third was a session of its own"


def test_a_connection_that_is_closing_ends_as_it_would_have() -> None:
    node = node_with(allow_all())
    talk = Connection()
    node.judge(*talk.handshake(), *talk.goodbye())
    assert node.only_session()["state"] == "time-wait"
    node.engine.replace_policy(deny_all())
    pass_over(node)
    assert node.ends() == ["tcp-fin"]


def test_an_endpoint_that_lost_its_zone_loses_its_sessions() -> None:
    zones = "zones: {{left: {{endpoints: {}}}, right: {{endpoints: 2}}}}"
    node = node_with(policy("action: allow", zones=zones.format(1)))
    for endpoint in (1, 2):
        node.judge(*Connection(sport=40_000 + endpoint).handshake(), endpoint=endpoint)
    node.engine.replace_policy(policy("action: allow", zones=zones.format(3)))
    pass_over(node)
    assert [session["endpoint"] for session in node.sessions()] == [2]


def test_a_session_whose_rule_lets_it_go_to_the_store_now_goes_there() -> None:
    node = node_with(policy("action: allow; resiliency: off"))
    node.judge(*Connection().handshake())
    assert node.cluster.records() == {}
    node.engine.replace_policy(policy("action: allow"))
    pass_over(node)
    node.tick(1.1)
    node.serve()
    assert len(node.cluster.records()) == 1


def test_the_hand_asks_about_few_sessions_at_once_and_holds_no_time_back() -> None:
    sessions = 4 * REMATCH_SESSIONS
    node = node_with(allow_all(), max_sessions=sessions, resiliency=False)
    node.receive(*(packets.udp(CLIENT, SERVER, port, 53) for port in range(64)))
    node.receive(*(packets.udp(CLIENT, SERVER, port, 53) for port in range(64, sessions)))
    node.tick()
    node.engine.replace_policy(deny_all())
    left = []
    while node.engine.sessions_state.words[state.REMATCH_LEFT]:
        assert node.engine.next_timer() <= node.now, "nobody sleeps meanwhile"
        node.tick()
        left.append(len(node.sessions()))
    assert left[:2] == [sessions - REMATCH_SESSIONS, sessions - 2 * REMATCH_SESSIONS]
    assert left[-1] == 0
    assert node.engine.next_timer() > node.now


def test_an_empty_table_is_passed_in_steps() -> None:
    node = node_with(allow_all(), max_sessions=2 * REMATCH_SLOTS, resiliency=False)
    words = node.engine.sessions_state.words
    node.engine.replace_policy(deny_all())
    before = int(words[state.REMATCH_LEFT])
    node.tick()
    assert before - words[state.REMATCH_LEFT] == REMATCH_SLOTS


def test_a_change_that_comes_while_the_hand_is_on_its_way_begins_anew() -> None:
    node = node_with(allow_all(), max_sessions=4 * REMATCH_SESSIONS, resiliency=False)
    node.receive(*(packets.udp(CLIENT, SERVER, port, 53) for port in range(3 * REMATCH_SESSIONS)))
    node.engine.replace_policy(allow_all())
    node.tick()
    node.engine.replace_policy(deny_all())
    pass_over(node)
    assert node.sessions() == []


# What comes before the hand ------------------------------------------------------------------------------------


def test_a_packet_that_comes_before_the_hand_is_asked_about_there_and_then() -> None:
    node = node_with(WEB)
    talk, other = Connection(), Connection(sport=40_001)
    node.judge(*talk.handshake(), *other.handshake())
    node.engine.replace_policy(policy("service: tcp/80; action: deny", "action: allow"))
    assert node.judge(talk.data(), talk.data(talk.server)) == [POLICY_DENY] * 2
    assert node.ends() == ["policy-deny"]
    assert node.engine.counters["resets"] == 2, (
        "both packets are answered as of a connection that both ends have"
    )
    assert [session["sport"] for session in node.sessions()] == [40_001], (
        "nobody has asked about this one yet"
    )
    assert len(node.cluster.records()) == 1
    pass_over(node)
    assert node.engine.counters["sessions-ruled-out"] == 2, "each is counted once"


def test_a_packet_that_comes_before_the_hand_goes_on_by_the_rule_that_allows_it_now() -> None:
    node = node_with(WEB)
    talk = Connection()
    node.judge(*talk.handshake())
    node.engine.replace_policy(policy("name: new; service: tcp/80; action: allow"))
    assert node.judge(talk.data()) == [FORWARD]
    assert node.only_session()["rule"] == rule_id("new")
    assert node.engine.sessions_state.words[state.REMATCH_LEFT], "and the hand has not been there"


@pytest.mark.parametrize(
    ("packet", "verdict"),
    [
        (packets.udp(SERVER, CLIENT, 53, 5000), POLICY_DENY),
        (
            packets.icmp_error(SERVER, CLIENT, packets.udp(CLIENT, SERVER, 5000, 53)),
            Verdict.ICMP_ERROR_UNMATCHED,
        ),
    ],
    ids=["an answer", "an error about it"],
)
def test_nothing_else_of_a_refused_flow_passes_before_the_hand(packet: bytes, verdict: Verdict) -> None:
    node = node_with(WEB)
    node.judge(packets.udp(CLIENT, SERVER, 5000, 53), packets.udp(SERVER, CLIENT, 53, 5000))
    node.engine.replace_policy(deny_all())
    assert node.judge(packet) == [verdict]
    assert node.sessions() == []


def test_a_packet_that_waits_for_the_store_is_asked_about_when_it_goes_on() -> None:
    node = node_with(WEB)
    talk = Connection()
    node.judge(*talk.handshake())
    node.cluster.wait(1)
    beyond = talk.segment(talk.client, "A", seq=talk.client.next + (1 << 25))
    assert node.receive(beyond) == [Verdict.PARK], "it fits no window here: the store may know better"
    node.engine.replace_policy(deny_all())
    node.serve()
    assert node.released == []
    assert node.ends() == ["policy-deny"]


# The log of ends -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "logged"),
    [("log-end: yes", True), ("log-end: no", False), ("log-start: no", True)],
    ids=["yes", "no", "by default"],
)
def test_a_rule_says_whether_the_ends_of_its_sessions_are_logged(rule: str, logged: bool) -> None:
    node = node_with(policy(f"name: web; service: tcp/80; action: allow; {rule}", "action: allow"))
    talk = Connection()
    node.judge(*talk.handshake(), *talk.goodbye())
    node.tick(20)
    assert node.engine.counters["sessions-ended"] == 1
    assert node.ends() == (["tcp-fin"] if logged else [])


def test_a_session_that_was_taken_over_is_logged_as_the_rule_of_here_says() -> None:
    cluster = Cluster()
    dead, alive = cluster.node(WEB), cluster.node(policy("service: tcp/80; action: allow; log-end: no"))
    talk = Connection()
    dead.judge(*talk.handshake())
    assert alive.judge(talk.data()) == [FORWARD]
    alive.tick(3601)
    assert (alive.sessions(), alive.ends()) == ([], [])


@pytest.mark.parametrize(
    ("former", "refusing", "logged"),
    [("yes", "yes", True), ("yes", "no", True), ("no", "yes", True), ("no", "no", False)],
)
def test_a_session_that_policy_ends_is_logged_where_either_of_its_rules_wants_it(
    former: str, refusing: str, logged: bool
) -> None:
    node = node_with(policy(f"action: allow; log-end: {former}"))
    node.judge(*Connection().handshake())
    node.engine.replace_policy(policy(f"action: drop; log-end: {refusing}"))
    pass_over(node)
    assert node.ends() == (["policy-deny"] if logged else [])


def test_the_rule_of_a_later_policy_says_it_from_then_on() -> None:
    node = node_with(policy("action: allow; log-end: no"))
    node.judge(*Connection().handshake())
    node.engine.replace_policy(policy("action: allow"))
    pass_over(node)
    node.tick(3601)
    assert node.ends() == ["aged-out"]


# What comes from the store -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "passes"),
    [
        (("name: web; service: tcp/80; action: allow",), True),
        (("name: ssh; service: tcp/22; action: deny", "name: new; service: tcp/80; action: allow"), True),
        (("name: web; service: tcp/443; action: allow",), False),
        ((f"source: {CLIENT}; action: drop", "name: web; service: tcp/80; action: allow"), False),
    ],
    ids=["the same", "only other rules changed", "its rule changed", "a rule before it is new"],
)
def test_a_stored_session_is_asked_about_under_the_policy_that_came_meanwhile(
    rules: tuple[str, ...], passes: bool
) -> None:
    cluster = Cluster()
    dead, alive = cluster.node(WEB), cluster.node(WEB)
    talk = Connection()
    dead.judge(*talk.handshake())
    alive.engine.replace_policy(policy(*rules))
    pass_over(alive)
    assert alive.judge(talk.data()) == [FORWARD if passes else POLICY_DENY]
    assert alive.engine.counters["restore-denied"] == (0 if passes else 1)
    if passes:
        name = "new" if len(rules) > 1 else "web"
        assert alive.only_session()["rule"] == rule_id(name)


def test_records_of_a_mass_takeover_are_asked_about_as_well() -> None:
    cluster = Cluster()
    former, node = cluster.node(WEB), cluster.node(WEB)
    former.receive(*Connection().handshake())
    former.receive(packets.udp(CLIENT, SERVER, 5000, 53), packets.udp(SERVER, CLIENT, 53, 5000))
    rows = former.engine.outbox()
    node.engine.replace_policy(policy("service: udp/53; action: allow"))
    assert node.engine.restore_all(rows[rows[:, image.OP] == image.WRITE_FIRST], node.now) == 1
    assert np.count_nonzero(node.engine.sessions_state.table.tags) == 1
