"""What is right as it stands and yet not what anybody means is said, with its line."""

from __future__ import annotations

from everwall.policy.rules import read_policy


def found(*rules: str, before: str = "") -> list[str]:
    lines = "".join(
        f"- {{{text}, action: allow}}\n" if "action" not in text else f"- {{{text}}}\n" for text in rules
    )
    return list(read_policy("policy.yaml", before + "rules:\n" + lines).warnings)


ONE = "name: one, source: 10.0.0.0/8, destination: any, service: tcp/80"


def test_rules_that_are_never_reached_are_named_with_those_that_hide_them() -> None:
    two = "name: two, source: 10.1.0.0/16, destination: any, service: tcp/80"
    assert found(ONE, two) == [
        "policy.yaml:3: rule two is never reached: rule one (line 2) matches all that it would"
    ]
    halves = [
        f"name: {name}, source: {name}/9, destination: any, service: any"
        for name in ("10.0.0.0", "10.128.0.0")
    ]
    whole = "name: whole, source: 10.0.0.0/8, destination: any, service: udp/53"
    assert found(*halves, whole) == [
        "policy.yaml:4: rule whole is never reached: "
        "rules 10.0.0.0, 10.128.0.0 together match all that it would"
    ]


def test_rules_that_match_nothing_say_why() -> None:
    zones = "zones: {a: {endpoints: 1}, b: {endpoints: 2}, c: }\n"
    other = "source: 10.0.0.1, destination: any, service: any"
    for text, why in (
        (f"name: x, from: a, to: b, {other}", "there is no traffic from its zones to its zones"),
        (f"name: x, from: c, {other}", "there is no traffic from its zones to its zones"),
        (f"name: x, rule-type: interzone, {other}", "there is no traffic from its zones to its zones"),
        ("name: x, source: 10.0.0.1, destination: '::1', service: any", "are of different families"),
        (
            "name: x, source: [0.0.0.0/0, '::/0'], negate-source: true, destination: any, service: any",
            "its source is no address at all",
        ),
    ):
        (_, said) = found(text, before=zones)
        assert said.startswith("policy.yaml:3: rule x matches nothing: ")
        assert why in said
    assert found(f"name: x, from: a, {other}", before=zones) == [
        "policy.yaml:1: zone c has no endpoints: nothing is in it"
    ]


def test_rules_that_allow_everything_are_named() -> None:
    everything = "name: x, source: any, destination: any, service: any"
    assert found(everything) == ["policy.yaml:2: rule x allows everything"]
    assert found(f"{everything}, from: data") == ["policy.yaml:2: rule x allows everything in its zones"]
    assert found(f"{everything}, disabled: true", ONE) == []
    assert found(f"{everything}, action: deny") == [
        "policy.yaml: no rule allows anything: everything is denied"
    ]
    before = "default-rules: {intrazone-default: {action: allow}}\n"
    assert found(ONE, before=before) == [
        "policy.yaml: intrazone-default allows everything that no rule matches"
    ]
    (warning,) = found("name: x, source: 10.0.0.0/8, negate-source: true, destination: any, service: any")
    assert warning == "policy.yaml:2: rule x names no IPv6 address in its negated source: all of them match"


def test_objects_that_no_rule_names_are_named() -> None:
    before = (
        "addresses: {a: 10.0.0.1, b: [a], c: 10.0.0.2, d: [c], e: 10.0.0.3}\nservices: {s: tcp/1, t: tcp/2}\n"
    )
    text = "name: x, source: b, destination: [e], service: s"
    assert found(text, before=before) == [
        "policy.yaml: addresses that no rule names: c, d",
        "policy.yaml: services that no rule names: t",
    ]


def test_of_many_findings_the_first_are_shown_and_all_are_counted() -> None:
    same = [f"name: r{k}, source: 10.0.0.1, destination: any, service: any" for k in range(40)]
    said = found(*same)
    assert len(said) == 21
    assert said[-1] == "policy.yaml: rules that are never reached: 39 in all"
