"""What a session may cost: nothing on a changed policy that still allows it, and no crash on a tunnel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from everwall.policy.compile import Loaded, load_policy
from tests.conversations import Connection
from tests.packets import geneve, ip, ipv4, udp
from tests.regressions.appliance import Appliance, sent

pytestmark = pytest.mark.kernel

CLIENT, SERVER = "10.1.0.5", "10.2.0.9"


def policy(folder: Path, *rules: str, zones: str = "spoke: {endpoints: [0x1]}") -> Loaded:
    """Rules in their order, in YAML without the braces; a rule has the zones ``spoke`` unless it says so."""
    lines = [
        "  - {source: any, destination: any, "
        + ("" if "from:" in rule else "from: any, to: any, ")
        + rule
        + "}"
        for rule in rules
    ]
    file = folder / "policy.yaml"
    file.write_text(f"zones: {{{zones}}}\nrules:\n" + "\n".join(lines) + "\n")
    return load_policy(file)


def test_a_live_connection_goes_on_without_a_syn_when_the_policy_is_replaced(
    make: Callable[..., Appliance], tmp_path: Path
) -> None:
    """Matching live sessions anew is no reason to want a handshake from them: a middle packet that the new policy
    allows is not "non-SYN"."""
    web = policy(tmp_path, "name: web, service: tcp/80, action: allow")
    firewall = make(web.compiled, resiliency=False)
    talk = Connection(CLIENT, SERVER)
    for inner in talk.handshake():
        assert firewall.passes(sent(geneve(inner)))
    ssh, again = (
        "name: ssh, service: tcp/22, action: deny",
        "name: web again, service: tcp/80, action: allow",
    )
    firewall.engine.replace_policy(policy(tmp_path, ssh, again).compiled)
    for inner in talk.exchange(3) + talk.goodbye():
        assert firewall.passes(sent(geneve(inner)))
    assert "non-syn-tcp" not in firewall.engine.verdicts


def test_a_restored_connection_is_matched_anew_and_goes_on_without_a_syn(
    make: Callable[..., Appliance], tmp_path: Path
) -> None:
    """After a takeover every packet is a middle packet, and the policy may be a newer one than the session's."""
    former = Appliance(policy(tmp_path, "name: web, service: tcp/80, action: allow").compiled)
    talk = Connection(CLIENT, SERVER)
    for inner in talk.handshake():
        assert former.passes(sent(geneve(inner)))
    (record,) = former.engine.outbox()
    rules = ("name: dns, service: udp/53, action: deny", "name: any, service: any, action: allow")
    firewall = make(policy(tmp_path, *rules).compiled)
    packet = sent(geneve(talk.data()))
    assert firewall.through(packet) is None, "it waits for the store"
    assert len(firewall.answer(True, record)) == 1
    for inner in [talk.ack(talk.server), *talk.exchange(2)]:
        assert firewall.passes(sent(geneve(inner)))
    assert "non-syn-tcp" not in firewall.engine.verdicts


def test_the_first_rule_that_matches_decides_whatever_comes_after_it(
    make: Callable[..., Appliance], tmp_path: Path
) -> None:
    """The same tuple behind two endpoints is two flows with a rule each; what one matched is not the other's."""
    zones = "left: {endpoints: [0x1]}, right: {endpoints: [0x2]}"
    loaded = policy(
        tmp_path,
        "name: not here, from: right, to: right, service: tcp/80, action: drop",
        "name: web, service: tcp/80, action: allow",
        "name: rest, service: any, action: drop",
        zones=zones,
    )
    firewall = make(loaded.compiled, resiliency=False)
    inner = Connection(CLIENT, SERVER).syn()
    for _ in range(2):
        assert firewall.passes(sent(geneve(inner, endpoint=1)))
        assert not firewall.passes(sent(geneve(inner, endpoint=2)))
    (session,) = firewall.engine.sessions()
    assert (session["endpoint"], loaded.names.rule(session["rule"])) == (1, "web")


TUNNELS = {
    "IP in IP": ipv4(CLIENT, SERVER, 4, udp("192.168.0.1", "192.168.0.2", 1, 2)),
    "GRE": ipv4(CLIENT, SERVER, 47, b"\0\0\x08\0" + udp("192.168.0.1", "192.168.0.2", 1, 2)),
    "GRE with a key": ipv4(CLIENT, SERVER, 47, b"\x20\0\x08\0\0\0\0\7" + bytes(20)),
    "ESP": ipv4(CLIENT, SERVER, 50, bytes(range(64))),
    "AH": ipv4(CLIENT, SERVER, 51, bytes([4, 4, 0, 0]) + bytes(40)),
    "IPv6 in IPv4": ipv4(CLIENT, SERVER, 41, udp("fd00::1", "fd00::2", 1, 2)),
    "IPv4 in IPv6": ip("fd00::1", "fd00::2", 4, udp(CLIENT, SERVER, 1, 2)),
    "GENEVE in GENEVE": udp(CLIENT, SERVER, 50_000, 6081, geneve(udp(SERVER, CLIENT, 1, 2), endpoint=9)),
    "VXLAN": udp(CLIENT, SERVER, 50_000, 4789, b"\x08\0\0\0\0\0\7\0" + bytes(60)),
    "GTP-U": udp(CLIENT, SERVER, 2152, 2152, b"\x30\xff\0\x1c\0\0\0\1" + udp(CLIENT, SERVER, 1, 2)),
}


@pytest.mark.parametrize("name", TUNNELS)
def test_a_tunnel_through_the_firewall_is_one_flow_and_harms_nothing(firewall: Appliance, name: str) -> None:
    """A session that carries a tunnel, this same encapsulation among them, is judged by its outermost addresses;
    its content is somebody else's packet, whole or cut, and nobody unwraps it twice."""
    inner = TUNNELS[name]
    for _ in range(3):
        assert firewall.passes(sent(geneve(inner)))
    assert len(firewall.engine.sessions()) == 1
    header = 40 if inner[0] >> 4 == 6 else 20
    for length in range(1, len(inner)):
        short = inner[:length]
        if length >= header and header == 20:
            short = ipv4(CLIENT, SERVER, inner[9], inner[20:length])
        firewall.passes(sent(geneve(short)))
    assert firewall.passes(sent(geneve(inner)))
