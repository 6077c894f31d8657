"""Two nodes have the same policy when they decide alike, however it is written down."""

from __future__ import annotations

import pytest

from everwall.modes import ASYNC, STRICT
from everwall.policy.checksum import policy_checksum
from everwall.policy.rules import read_policy

POLICY = """
zones:
  spoke: {endpoints: [vpce-00000000000000aa, vpce-0a1b2c3d00000000]}
  hub: {endpoints: [vpce-00000000000000bb]}
rules:
  - {name: web, from: spoke, to: hub, source: [10.0.0.0/8, 192.0.2.7], destination: any,
     service: [tcp/80, udp/53], action: allow}
  - {name: no, from: any, to: any, source: any, destination: any, service: any, action: deny}
"""


def checksum(text: str, mode: int = ASYNC) -> str:
    return policy_checksum(read_policy("some.yaml", text), mode)


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        ("rules:", "# changed on Tuesday\nrules:"),
        ("[10.0.0.0/8, 192.0.2.7]", "[192.0.2.7, 10.0.0.0/8]"),
        ("[tcp/80, udp/53]", "[udp/53, tcp/80]"),
        ("action: allow}", "action: allow, description: for the web}"),
        ("[vpce-00000000000000aa, vpce-0a1b2c3d00000000]", "[vpce-0a1b2c3d00000000, vpce-00000000000000aa]"),
        (
            "  - {name: no,",
            "  - {name: off, disabled: yes, from: any, to: any, source: any, destination: any, service: any, "
            "action: allow}\n  - {name: no,",
        ),
    ],
)
def test_what_means_the_same_is_the_same(was, becomes):
    assert was in POLICY
    assert checksum(POLICY.replace(was, becomes)) == checksum(POLICY)


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        ("tcp/80", "tcp/81"),
        ("10.0.0.0/8", "10.0.0.0/9"),
        ("action: deny", "action: drop"),
        ("name: web", "name: www"),
        ("vpce-00000000000000bb", "vpce-00000000000000bc"),
        ("action: allow}", "action: allow, resiliency: strict}"),
        ("action: allow}", "action: allow, log-start: yes}"),
        ("action: deny", "action: deny, icmp-unreachable: yes"),
        ("rules:", "default-rules: {intrazone-default: {action: allow}}\nrules:"),
    ],
)
def test_what_means_something_else_is_not(was, becomes):
    assert was in POLICY
    assert checksum(POLICY.replace(was, becomes)) != checksum(POLICY)


def test_the_order_of_rules_and_the_nodes_own_mode_count():
    *lines, web, its_service, no = POLICY.strip().splitlines()
    swapped = "\n".join([*lines, no, web, its_service])
    assert checksum(swapped) != checksum(POLICY)
    assert checksum(POLICY, STRICT) != checksum(POLICY)


def test_where_the_file_lies_does_not():
    assert policy_checksum(read_policy("other.yaml", POLICY), ASYNC) == checksum(POLICY)


def test_no_policy_is_one_too():
    assert policy_checksum(read_policy(None), ASYNC) == checksum("")
    assert len(checksum("")) == 16
