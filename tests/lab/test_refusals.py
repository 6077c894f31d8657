"""Kernels at both ends of a cluster of the lab: what an application hears of a connection that policy refuses."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from everwall.lab import configuration, lab, rundir, topology
from everwall.lab.capabilities import ROOT
from everwall.lab.cluster import Cluster
from everwall.lab.launch import inside
from everwall.lab.processes import Programs, wait_until
from everwall.lab.site_namespaces import NamespaceSite
from tests import needs

pytestmark = pytest.mark.lab

SERVER = topology.SERVER
PATIENCE_S = 20
RULES = {
    "reset-client": "tcp/5001",
    "deny": ["tcp/5002", "udp/5002"],
    "drop, icmp-unreachable": ["tcp/5003", "udp/5003"],
    "reset-server": "tcp/5004",
    "drop": ["tcp/5005", "udp/5005"],
}


def _policy(live: str) -> dict[str, Any]:
    """What a lab's policy says, before it the rules above and one for the port of the live connections."""
    rules: list[dict[str, Any]] = []
    for words, service in {live: "tcp/5000", **RULES}.items():
        action, _, unreachable = words.partition(", ")
        rule = {"name": words.replace(",", ""), "source": "any", "destination": "any", "service": service}
        rules.append({**rule, "action": action, **({"icmp-unreachable": True} if unreachable else {})})
    whole = _LAB_POLICY()
    return {**whole, "rules": rules + whole["rules"]}


_LAB_POLICY: Callable[[], dict[str, Any]] = configuration.policy


class Story:
    """A cluster with one firewall, and sockets in the namespaces of clients and servers."""

    def __init__(self, cluster: Cluster, site: NamespaceSite) -> None:
        self.cluster = cluster
        self.site = site

    def socket(self, where: str, kind: socket.SocketKind) -> socket.socket:
        with inside(self.site.topology.path(where)):
            made = socket.socket(socket.AF_INET, kind)
        made.settimeout(PATIENCE_S)
        return made

    def connect(self, port: int, patience_s: float = PATIENCE_S) -> int:
        """What connect() says, 0 when there is a connection."""
        with self.socket("clients", socket.SOCK_STREAM) as client:
            client.settimeout(patience_s)
            return client.connect_ex((SERVER, port))

    def talk(self, port: int, patience_s: float = PATIENCE_S) -> int:
        """What a connected UDP socket hears after it has sent a datagram."""
        with self.socket("clients", socket.SOCK_DGRAM) as client:
            client.settimeout(patience_s)
            client.connect((SERVER, port))
            client.send(b"question")
            try:
                client.recv(1)
            except TimeoutError:
                return errno.ETIMEDOUT
            except OSError as error:
                return error.errno or 0
        return 0

    def reload(self, policy: dict[str, Any]) -> None:
        (name,) = self.cluster.firewalls
        (self.cluster.directory.path / name / "policy.yaml").write_text(
            yaml.safe_dump(policy, sort_keys=False)
        )
        self.cluster.ask(name, "policy", do="reload")
        wait_until(
            "the live sessions",
            lambda: self.cluster.ask(name, "policy")["rematch_percent"] == 100,
            PATIENCE_S,
            [],
        )

    def counters(self) -> dict[str, int]:
        (name,) = self.cluster.firewalls
        return self.cluster.counters(name)


def hears_reset(end: socket.socket, says: bytes = b"") -> bool:
    """Whether a connection is reset by the time that its end has spoken and listened."""
    try:
        if says:
            end.sendall(says)
        end.recv(100)
    except ConnectionResetError:
        return True
    return False


@pytest.fixture(scope="module")
def story() -> Iterator[Story]:
    needs.namespaces()
    needs.root()
    lab.prepare(print)
    xdp = not needs.why_no_xdp()
    directory = rundir.create()
    site = NamespaceSite(directory, 1, "xdp" if xdp else "raw", xdp, ROOT)
    programs = Programs(directory)
    with contextlib.ExitStack() as opened:
        opened.callback(directory.close, remove=True)
        opened.callback(site.remove)
        opened.callback(programs.stop)
        patched = opened.enter_context(pytest.MonkeyPatch.context())
        patched.setattr(configuration, "policy", lambda: _policy("allow"))
        site.build()
        cluster = Cluster(directory, site, programs, resiliency=True)
        cluster.start(print)
        yield Story(cluster, site)


def test_an_application_hears_at_once_that_its_connection_is_refused(story: Story) -> None:
    before = story.counters()
    assert story.connect(5001) == errno.ECONNREFUSED
    assert story.connect(5002) == errno.ECONNREFUSED
    assert story.connect(5003) == errno.EHOSTUNREACH
    after = story.counters()

    def more(name: str) -> int:
        return after.get(name, 0) - before.get(name, 0)

    assert more("resets") >= 2
    assert more("unreachables") >= 1
    # A client whose machine has stood still for a second asks twice by itself.
    assert more("resets") + more("unreachables") == more("policy-deny"), "nobody had to ask twice"


def test_an_application_hears_by_icmp_that_its_datagram_is_refused(story: Story) -> None:
    before = story.counters()
    assert story.talk(5002) == errno.EHOSTUNREACH
    assert story.talk(5003) == errno.EHOSTUNREACH
    assert story.counters()["unreachables"] - before["unreachables"] == 2


def test_a_drop_is_not_heard_of(story: Story) -> None:
    before = story.counters()
    assert story.talk(5005, 0.3) == errno.ETIMEDOUT
    for port in (5004, 5005):
        assert story.connect(port, 0.3) in (errno.EAGAIN, errno.EINPROGRESS)
    after = story.counters()
    assert (after["resets"], after["unreachables"]) == (before["resets"], before["unreachables"])


@pytest.mark.parametrize("speaks", ["client", "server"])
def test_both_ends_of_a_live_connection_hear_that_a_reload_refuses_it(story: Story, speaks: str) -> None:
    """By the next packet of either; the cut-through, where there is one, answered for it until then."""
    story.reload(_policy("allow"))
    with story.socket("servers", socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((SERVER, 5000))
        listener.listen()
        client = story.socket("clients", socket.SOCK_STREAM)
        client.connect((SERVER, 5000))
        server, _ = listener.accept()
    with client, server:
        for _ in range(20):
            client.sendall(b"question")
            assert server.recv(100) == b"question"
            server.sendall(b"answer")
            assert client.recv(100) == b"answer"
        before = story.counters()
        story.reload(_policy("reset-both"))
        speaker, listens = (client, server) if speaks == "client" else (server, client)
        assert hears_reset(speaker, b"one more word"), "at the latest; a belated acknowledgement does as well"
        assert hears_reset(listens)
        after = story.counters()
        assert after["resets"] - before["resets"] >= 2
        assert after["sessions-ruled-out"] - before["sessions-ruled-out"] == 1


def test_everything_that_was_made_found_its_way(story: Story) -> None:
    """The load balancer carried all of it back by flow and cookie."""
    balancer = story.cluster.counters("gwlb")
    assert not [name for name in balancer if name.startswith("invalid-")], balancer
    assert story.counters()["answers-unsent"] == story.counters()["answers-held-back"] == 0
