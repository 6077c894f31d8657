"""A TCP packet that is not SYN, of a connection that nobody knows: refused, unless the operator wants it otherwise."""

from __future__ import annotations

import pytest

from everwall.limits import SECOND_NS
from everwall.modes import STRICT
from everwall.policy.compile import compile_policy
from everwall.policy.match import CompiledPolicy
from everwall.policy.rules import read_policy
from everwall.policy.settings import SessionSettings
from everwall.session import image
from everwall.session.tcp import RELEARN_NS
from everwall.verdict import Verdict
from tests import packets
from tests.cluster import Cluster, Node
from tests.conversations import Connection

pytestmark = pytest.mark.kernel

FORWARD, PARK, NON_SYN = Verdict.FORWARD, Verdict.PARK, Verdict.NON_SYN_TCP
ADMIT = SessionSettings(reject_non_syn=False)
ONE_WAY = "{name: out, source: 10.0.0.0/24, destination: 10.0.1.0/24, service: tcp/80, action: allow}"


def one_way(mode: int | None = None) -> CompiledPolicy:
    """Clients of 10.0.0.0/24 may go to 10.0.1.0/24, and nobody else anywhere."""
    policy = read_policy("p.yaml", f"rules: [{ONE_WAY}]")
    return compile_policy(policy, *(() if mode is None else (mode,)))[0]


def admitting(policy: CompiledPolicy | None = None, **config: object) -> Node:
    return Cluster().node(policy or one_way(), settings=ADMIT, **config)


def underway() -> Connection:
    """A connection whose handshake went another way."""
    connection = Connection()
    connection.handshake()
    return connection


@pytest.mark.parametrize("settings", [SessionSettings(), SessionSettings(reject_non_syn=True)])
@pytest.mark.parametrize("resiliency", [True, False])
def test_it_is_refused_by_default_and_where_it_is_said(settings: SessionSettings, resiliency: bool) -> None:
    node = Cluster().node(settings=settings, resiliency=resiliency)
    assert node.judge(underway().data()) == [NON_SYN]
    assert node.sessions() == []


def test_admitted_it_waits_for_the_store_and_then_opens_a_session_that_lives_like_any_other() -> None:
    node = admitting()
    connection = underway()
    first, answer = connection.data(), connection.data(connection.server)
    assert node.receive(first, answer) == [PARK, PARK], "the store may know it"
    node.serve()
    assert node.released == [first, answer]
    session = node.only_session()
    assert (session["state"], session["src"], session["packets"]) == ("established", "10.0.0.1", 2)
    assert len(node.cluster.records()) == 1, "its node may die like that of any other"
    assert set(node.receive(*connection.exchange(5))) == {FORWARD}
    assert node.engine.counters["lookups"] == 1
    assert set(node.judge(*connection.goodbye())) == {FORWARD}
    node.tick(60)
    assert node.ends() == ["tcp-fin"]


def test_what_the_store_knows_is_restored_and_not_opened_anew() -> None:
    cluster = Cluster()
    first, second = cluster.node(one_way()), cluster.node(one_way(), settings=ADMIT)
    connection = Connection()
    first.judge(*connection.handshake())
    assert second.judge(connection.data(connection.server)) == [FORWARD], "whoever speaks first"
    assert second.only_session()["src"] == "10.0.0.1"
    assert second.engine.counters["sessions-restored"] == 1


def test_without_a_store_policy_is_asked_at_once() -> None:
    node = admitting(resiliency=False)
    assert node.receive(underway().data()) == [FORWARD]


@pytest.mark.parametrize(
    ("status", "verdict"),
    [(image.FAILED, Verdict.STORE_UNAVAILABLE), (image.REFUSED, Verdict.RESTORE_REFUSED)],
)
def test_a_store_that_does_not_say_that_it_does_not_know_opens_nothing(status: int, verdict: Verdict) -> None:
    node = admitting()
    node.receive(underway().data())
    node.reply(node.engine.outbox(), status)
    assert node.engine.verdicts == {"park": 1, verdict.label: 1}
    node.receive(underway().data())
    node.tick(0.05)
    assert node.engine.verdicts["lookup-timeout"] == 1
    assert node.sessions() == []


def test_the_sender_counts_as_the_client_and_policy_decides_about_it() -> None:
    node = admitting()
    connection = underway()
    assert node.judge(connection.data(connection.server)) == [Verdict.POLICY_DENY]
    assert node.sessions() == []
    assert node.judge(connection.data()) == [FORWARD], "the client's next packet opens it"
    assert node.judge(connection.data(connection.server)) == [FORWARD]


def test_both_ends_wait_in_one_list_and_the_one_that_may_opens() -> None:
    node = admitting()
    connection = underway()
    back, forth = connection.data(connection.server), connection.data()
    node.receive(back, forth)
    node.serve()
    assert node.released == [forth]
    assert node.engine.verdicts == {"park": 2, "policy-deny": 1, "forward": 1}


@pytest.mark.parametrize("flags", ["SA", "R", "RA", "F"])
def test_only_what_an_open_connection_sends_opens_one(flags: str) -> None:
    node = admitting(resiliency=False)
    assert node.judge(packets.tcp("10.0.0.1", "10.0.1.1", 40_000, 80, flags, 1, 1)) == [NON_SYN]
    assert node.sessions() == []


def test_a_syn_ack_does_not_open_what_its_receiver_would_be_allowed() -> None:
    node = admitting(resiliency=False)
    assert node.judge(packets.tcp("10.0.1.1", "10.0.0.1", 80, 40_000, "SA", 1, 1)) == [NON_SYN]


def test_a_fin_opens_half_a_close() -> None:
    node = admitting(resiliency=False)
    assert node.receive(underway().fin()) == [FORWARD]
    assert node.only_session()["state"] == "half-closed"


def test_windows_are_learnt_from_both_ends_and_judged_afterwards() -> None:
    node = admitting(resiliency=False)
    connection = Connection(client_scale=7, server_scale=7)
    connection.handshake()
    node.receive(*connection.exchange(3))
    node.tick(RELEARN_NS / SECOND_NS + 1)
    node.receive(*connection.exchange(2))
    stray = connection.segment(connection.client, "A", seq=connection.client.next + (1 << 30))
    assert node.receive(stray) == [Verdict.TCP_WINDOW]


def test_strict_mode_holds_nothing_for_it() -> None:
    node = admitting(one_way(STRICT))
    connection = underway()
    assert node.judge(connection.data()) == [FORWARD]
    assert node.receive(connection.data(connection.server)) == [FORWARD]
    assert len(node.cluster.records()) == 1


def test_what_was_missed_is_forgotten_once_it_is_open() -> None:
    """Else a node that lost the session again would not ask the store that has it by then."""
    node = admitting()
    connection = underway()
    assert node.judge(connection.data()) == [FORWARD]
    node.forget_everything()
    assert node.receive(connection.data()) == [PARK]
    node.serve()
    assert node.engine.counters["sessions-restored"] == 1


def test_fragments_follow_the_first_one() -> None:
    node = admitting(resiliency=False)
    parts = packets.fragments(underway().data(size=1200), 600)
    assert node.receive(parts[1]) == [Verdict.FRAGMENT_UNMATCHED]
    assert set(node.receive(*parts)) == {FORWARD}
