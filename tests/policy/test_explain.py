"""Why a rule decides, and by what those before it do not match."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from everwall.policy.explain import Decision, Question, explain
from everwall.policy.rules import read_policy

POLICY = read_policy(
    "p.yaml",
    """
zones: {web: {endpoints: 1}, back: {endpoints: 2}}
rules:
  - {name: far, from: back, to: back, source: 192.0.2.1, destination: 192.0.2.2, service: udp/53, action: allow}
  - {name: asleep, source: any, destination: any, service: any, action: allow, disabled: true}
  - {name: port, from: web, source: any, destination: any, service: tcp/8443, action: allow}
  - {name: side, source: 10.0.0.0/8, negate-source: true, destination: any, service: tcp/443, action: allow}
  - {name: between, rule-type: interzone, source: any, destination: any, service: any, action: allow}
  - {name: within, rule-type: intrazone, source: any, destination: any, service: tcp/443, action: deny}
""",
)


def asked(**fields: object) -> Decision:
    given = {
        "from_zone": "web",
        "to_zone": "web",
        "source": ip_address("10.0.0.1"),
        "destination": ip_address("10.1.0.1"),
        "protocol": 6,
        "sport": 40_000,
        "dport": 443,
    }
    return explain(POLICY, Question(**(given | fields)))  # type: ignore[arg-type]


def test_each_rule_before_the_deciding_one_says_by_which_fields_it_does_not_match() -> None:
    decision = asked()
    assert (decision.rule.name, decision.row) == ("within", 4), "a disabled rule is none of the rows"
    assert {miss.rule.name: miss.fields for miss in decision.misses} == {
        "far": ("from", "to", "source", "destination", "service"),
        "port": ("service",),
        "side": ("source",),
        "between": ("rule-type",),
    }


def test_the_nearest_are_those_with_the_fewest_fields_and_of_them_the_later_ones() -> None:
    decision = asked()
    assert [miss.rule.name for miss in decision.nearest(2)] == ["side", "between"]
    assert [miss.rule.name for miss in decision.nearest(3)] == ["port", "side", "between"]
    assert [miss.rule.name for miss in decision.nearest(9)] == ["far", "port", "side", "between"]
    assert decision.nearest(0) == []


@pytest.mark.parametrize(
    ("fields", "rule", "row"),
    [
        ({"dport": 80}, "intrazone-default", 5),
        ({"to_zone": "back", "dport": 80}, "between", 3),
        ({"from_zone": None}, "interzone-default", 6),
        ({"source": ip_address("11.0.0.1")}, "side", 2),
        ({"source": ip_address("2001:db8::1"), "destination": ip_address("2001:db8::2")}, "side", 2),
    ],
)
def test_zones_and_negation_and_defaults(fields: dict[str, object], rule: str, row: int) -> None:
    decision = asked(**fields)
    assert (decision.rule.name, decision.row) == (rule, row)
