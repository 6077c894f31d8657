"""A policy file is read as it was meant, or refused with the place and the reason."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everwall.config import ConfigError
from everwall.modes import ASYNC, OFF, STRICT
from everwall.policy.compile import compile_policy, load_policy
from everwall.policy.match import ACTION_DENY, RULE_ACTION, RULE_LOG_END, RULE_LOG_START, RULE_MODE
from everwall.policy.rules import (
    ICMP,
    AddressRange,
    Policy,
    Service,
    parse_address,
    parse_endpoint,
    parse_service,
    read_policy,
)
from everwall.policy.words import parse_wildcard
from tests.policy.wrong import HALF, RULE, WRONG

GOOD = """\
zones:
  data:
    description: workloads
    endpoints: [vpce-0123456789abcdef, vpce-0fedcba9876543210, 0x12, 17]
  spare:
    endpoints: 99
addresses:
  web: 10.1.2.0/24
  database: 10.0.0.1-10.0.0.9
  six: 2001:db8::/32
  everybody inside: [web, database, six, 192.0.2.7]
services:
  web: [tcp/80, tcp/443]
  resolver: {protocol: udp, port: 53, source-port: 1024-65535}
rules:
  - name: web in
    description: what the site is for
    from: data
    to: [data, spare]
    source: any
    destination: [web, 2001:db8::80]
    service: web
    action: allow
    log-start: yes
    log-end: no
  - name: inside
    source: everybody inside
    destination: everybody inside
    service: [icmp, resolver, tcp/8000-8100, protocol/47]
    action: drop
    icmp-unreachable: yes
  - {name: old, source: any, destination: any, service: any, action: deny, disabled: true}
default-rules:
  intrazone-default: {action: deny, log-end: true}
  interzone-default: {action: drop, icmp-unreachable: true}
"""


def read(text: str) -> Policy:
    return read_policy("policy.yaml", text)


def test_a_whole_policy_is_read_as_it_was_meant() -> None:
    policy = read(GOOD)
    web_in, inside, old = policy.rules
    assert policy.zones[0].endpoints == (0x0123456789ABCDEF, 0xFEDCBA9876543210, 0x12, 17)
    assert policy.zones[1].endpoints == (99,)
    assert (web_in.from_zones, web_in.to_zones) == (("data",), ("data", "spare"))
    assert web_in.source is None
    six_80 = (0x20010DB8 << 96) + 0x80
    assert web_in.destination == (
        AddressRange(4, 0x0A010200, 0x0A0102FF),
        AddressRange(6, six_80, six_80),
    )
    assert web_in.service == (Service(0, 6, 80, 80, 0, 65535), Service(0, 6, 443, 443, 0, 65535))
    assert (web_in.action, web_in.log_start, web_in.log_end) == ("allow", True, False)
    assert web_in.description == "what the site is for"
    assert inside.source == inside.destination
    assert inside.source is not None
    assert [entry.family for entry in inside.source] == [4, 4, 6, 4]
    assert inside.service == (
        *ICMP,
        Service(0, 17, 53, 53, 1024, 65535),
        Service(0, 6, 8000, 8100, 0, 65535),
        Service(0, 47, 0, 65535, 0, 65535),
    )
    assert (inside.from_zones, inside.log_start, inside.log_end) == (None, False, True)
    assert [rule.icmp_unreachable for rule in policy.rules] == [False, True, False]
    assert (policy.intrazone_default.icmp_unreachable, policy.interzone_default.icmp_unreachable) == (
        False,
        True,
    )
    assert old.disabled
    assert (policy.intrazone_default.action, policy.intrazone_default.log_end) == ("deny", True)
    assert (policy.interzone_default.action, policy.interzone_default.log_end) == ("drop", False)
    assert policy.summary == "policy policy.yaml: 2 rules, intrazone-default deny, interzone-default drop"
    assert policy.warnings == ()


def test_the_example_of_the_page_is_a_policy() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "policy.md").read_text()
    policy = read(page.split("```yaml\n")[1].split("```")[0])
    compile_policy(policy)
    assert policy.warnings == ()
    assert policy.zones[0].endpoints == (0xA1B2C3D4E5F60718, 0x2B8EE1D4DB0C51C4)
    assert [rule.name for rule in policy.rules] == ["site is public", "watch", "outside", "no telnet ever"]
    assert policy.intrazone_default.log_end


def test_without_a_file_everything_is_denied_and_it_says_so() -> None:
    policy, compiled, names = load_policy(None)
    assert policy.summary == "no policy file: everything is denied"
    assert policy.warnings == (policy.summary,)
    assert [int(row[RULE_ACTION]) for row in compiled.rules] == [ACTION_DENY, ACTION_DENY]
    assert set(names.rules.values()) == {"intrazone-default", "interzone-default"}


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "rules:\n", "zones: {}\nrules: []\n"])
def test_a_silent_policy_denies_everything_and_says_so(text: str) -> None:
    policy = read(text)
    compiled, _ = compile_policy(policy)
    assert [int(row[RULE_ACTION]) for row in compiled.rules] == [ACTION_DENY, ACTION_DENY]
    assert "everything is denied" in policy.warnings[-1]


def test_zones_that_nothing_can_be_in_are_named() -> None:
    (warning, _) = read("zones: {a: , data: }").warnings
    assert warning == (
        "policy.yaml:1: zone a has no endpoints: nothing is in it "
        "(no endpoint is mapped: everything is in zone data)"
    )
    (warning, _) = read("zones:\n  a: {endpoints: 1}\n  data:\n").warnings
    assert warning == "policy.yaml:3: zone data has no endpoints: nothing is in it"


def test_a_disabled_rule_is_left_out_and_the_default_rules_log_when_told() -> None:
    compiled, names = compile_policy(read(GOOD))
    assert len(compiled.rules) == 4
    assert [names.rule(int(row[1])) for row in compiled.rules] == [
        "web in",
        "inside",
        "intrazone-default",
        "interzone-default",
    ]
    assert [int(row[RULE_LOG_START]) for row in compiled.rules] == [1, 0, 0, 0]
    assert [int(row[RULE_LOG_END]) for row in compiled.rules] == [0, 1, 1, 0]
    assert "old" in names.rules.values(), "its sessions may still be in the store"


def test_what_several_rules_name_alike_stands_in_the_arrays_once() -> None:
    rule = "{{name: r{}, source: 10.0.0.0/8, destination: 10.0.0.0/8, service: tcp/80, action: allow}}"
    compiled, _ = compile_policy(read("rules: [" + ", ".join(rule.format(k) for k in range(5)) + "]"))
    assert (len(compiled.blocks), len(compiled.lines)) == (2, 2), "all of them, and none"


def test_two_names_with_one_id_are_refused() -> None:
    # 16 bits of zone id: these two names share theirs.
    first, second = colliding_zone_names()
    policy = read(f"zones:\n  {first}: {{endpoints: 1}}\n  {second}: {{endpoints: 2}}\n")
    with pytest.raises(ConfigError) as caught:
        compile_policy(policy)
    assert (caught.value.line, caught.value.key, caught.value.value) == (3, "zone", second)
    assert f"that of zone {first}" in caught.value.expected


def colliding_zone_names() -> tuple[str, str]:
    from everwall.policy.match import zone_id

    seen: dict[int, str] = {}
    for k in range(1 << 17):
        name = f"zone-{k}"
        if zone_id(name) in seen:
            return seen[zone_id(name)], name
        seen[zone_id(name)] = name
    raise AssertionError("no collision in twice as many names as ids")


@pytest.mark.parametrize(
    ("text", "line", "key", "value", "expected"),
    [case[1:] for case in WRONG],
    ids=[case[0] for case in WRONG],
)
def test_a_wrong_policy_is_refused_with_its_place(
    text: str, line: int | None, key: str, value: str | None, expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text)
    error = caught.value
    assert error.line == line, str(error)
    assert error.key == key, str(error)
    if value is not None:
        assert error.value == value, str(error)
    assert expected in error.expected, str(error)
    said = str(error)
    assert "\n" not in said
    assert said.startswith(f"policy.yaml:{line}:")
    assert error.key in said
    assert error.expected in said


def test_the_line_a_person_reads() -> None:
    with pytest.raises(ConfigError) as caught:
        read(HALF % ("any", "[icmp, tcp/99999]"))
    assert str(caught.value) == (
        "policy.yaml:5:19: rules[1].service[2]: 'tcp/99999': expected ports up to 65535"
    )


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "policy.yaml"
    with pytest.raises(ConfigError, match="a readable file"):
        read_policy(missing)
    with pytest.raises(ConfigError, match="a readable file"):
        read_policy(tmp_path)
    missing.write_bytes(b"rules: []\nzones: {\xff: }\n")
    with pytest.raises(ConfigError) as caught:
        read_policy(missing)
    assert (caught.value.line, caught.value.expected) == (2, "UTF-8 text")
    missing.write_bytes("\ufeffrules: []\r\n".encode())
    assert read_policy(missing).rules == ()


def test_groups_cannot_blow_up() -> None:
    # Each doubles the one before: expanded as written this would be a million entries.
    lines = ["addresses:", "  g0: [10.0.0.1, 10.0.0.2]"]
    lines += [f"  g{k}: [{', '.join([f'g{k - 1}'] * 4)}]" for k in range(1, 11)]
    lines += ["rules:", "- {name: a, source: g10, destination: any, service: any, action: allow}"]
    (rule,) = read("\n".join(lines)).rules
    assert rule.source is not None
    assert len(rule.source) == 2
    # Read from the deep end, the chain is followed only so far; a person's never comes near.
    deep = ["addresses:"] + [f"  g{k}: [g{k + 1}]" for k in range(500)] + ["  g500: 10.0.0.1"]
    with pytest.raises(ConfigError, match="groups at most 16 deep"):
        read("\n".join(deep))


WORDS = st.text(alphabet=st.sampled_from("0123456789abcdefx-/.:% vpcetcudipmol"), max_size=30)


@given(st.one_of(st.text(max_size=40), WORDS))
def test_any_word_is_understood_or_refused(text: str) -> None:
    endpoint, address, service = parse_endpoint(text), parse_address(text), parse_service(text)
    assert endpoint is None or 0 <= endpoint < 1 << 64
    assert isinstance(address, str) or 0 <= address.first <= address.last < 1 << 128
    assert isinstance(service, str) or all(entry.first_port <= entry.last_port for entry in service)


def read_or_refuse(text: str) -> None:
    """Any exception but the named one is a failure."""
    refused = ""
    try:
        compile_policy(read(text))
    except ConfigError as error:
        refused = str(error)
    assert refused.isprintable()


@given(st.text(max_size=200))
def test_any_text_is_a_policy_or_a_named_error(text: str) -> None:
    read_or_refuse(text)


@given(st.integers(0, 2**32))
def test_a_good_policy_with_one_wrong_character_never_crashes(seed: int) -> None:
    draw = random.Random(seed)
    at = draw.randrange(len(GOOD))
    text = GOOD[:at] + draw.choice(list("[]{}:,-#&*!|>'\"%@` \n\t0a") + [""]) + GOOD[at + 1 :]
    read_or_refuse(text)


# What the model can say and the arrays cannot -------------------------------------------------------------

FULL = """\
rules:
- name: a
  rule-type: intrazone
  from: data
  source: 10.0.0.0/8
  negate-source: true
  destination: any
  application: [ssl, web-browsing]
  host: [www.example.com, "*.example.org"]
  service: any
  action: reset-both
  tags: [reviewed 2026, web]
"""


def test_a_rule_holds_everything_that_the_form_has() -> None:
    (rule,) = read(FULL).rules
    assert (rule.rule_type, rule.action) == ("intrazone", "reset-both")
    assert (rule.negate_source, rule.negate_destination) == (True, False)
    assert rule.applications == ("ssl", "web-browsing")
    assert rule.hosts == ("www.example.com", "*.example.org")
    assert rule.tags == ("reviewed 2026", "web")
    (plain,) = read(RULE % ", application: any, host: any").rules
    assert (plain.rule_type, plain.applications, plain.hosts, plain.tags) == ("universal", None, None, ())


@pytest.mark.parametrize("action", ["deny", "reset-client", "reset-server", "reset-both"])
def test_a_refusal_with_an_answer_is_a_refusal(action: str) -> None:
    compiled, _ = compile_policy(read((RULE % "").replace("allow", action)))
    assert compiled.rules[0, RULE_ACTION] == ACTION_DENY


@pytest.mark.parametrize(
    ("more", "key"), [(", application: ssl", "application"), (", host: example.com", "host")]
)
def test_a_rule_that_would_match_more_than_it_says_is_refused(more: str, key: str) -> None:
    policy = read(RULE % more)
    with pytest.raises(ConfigError) as caught:
        compile_policy(policy)
    assert (caught.value.line, caught.value.key) == (2, f"a.{key}")
    compile_policy(read(RULE % f"{more}, disabled: true"))


# Objects ------------------------------------------------------------------------------------------------

OBJECTS = """\
addresses:
  site: {members: [10.0.0.0/24, "::1"], description: the public site, tags: [web, reviewed]}
  api: {fqdn: API.Example.com, description: not ours}
  branches: {wildcard: 10.0.1.0/0.255.0.255}
  partners: [api, {fqdn: b.example.com}, 192.0.2.1]
services:
  web: {members: [tcp/80, {protocol: tcp, port: 8000-8001, source-port: 1024-65535}], tags: web}
  dns: {protocol: udp, port: 53, description: to our resolver}
applications:
  ledger: [tcp/9000-9001]
rules:
- {name: a, source: [partners, branches], destination: site, service: [web, dns], action: allow}
"""


def test_objects_say_what_they_are_for() -> None:
    policy = read(OBJECTS)
    (rule,) = policy.rules
    assert rule.source is not None
    assert rule.source_names == ("api.example.com", "b.example.com")
    assert rule.source[0] == AddressRange(4, 0xC0000201, 0xC0000201)
    assert len(rule.source) == 1 + 256, "a range for each value of the second octet"
    assert rule.source[2] == AddressRange(4, 0x0A010100, 0x0A0101FF)
    assert rule.destination == (AddressRange(4, 0x0A000000, 0x0A0000FF), AddressRange(6, 1, 1))
    assert [entry[1:] for entry in rule.service or ()] == [
        (6, 80, 80, 0, 65535),
        (6, 8000, 8001, 1024, 65535),
        (17, 53, 53, 0, 65535),
    ]
    assert policy.host_names == rule.source_names
    assert policy.warnings == ()


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_a_wildcard_is_the_ranges_that_it_says(address: int, ignored: int, probe: int) -> None:
    # Few enough ones to be matchable: those of two masks, and the lowest byte.
    ignored = (ignored & (ignored >> 8) & 0x00130F00) | (ignored & 0xFF)
    address &= ~ignored
    text = "/".join(
        ".".join(str(value >> shift & 255) for shift in (24, 16, 8, 0)) for value in (address, ignored)
    )
    ranges = parse_wildcard(text)
    if isinstance(ranges, str):
        assert "at most 1024 ranges" in ranges
        return
    for value in (probe, address, address | ignored, address | (probe & ignored), address ^ 1):
        inside = (value & ~ignored) == address
        assert any(entry.first <= value <= entry.last for entry in ranges) == inside
    assert sum(entry.last - entry.first + 1 for entry in ranges) == 1 << ignored.bit_count()


def test_a_policy_of_too_many_host_names_is_refused() -> None:
    names = ", ".join(f"{{fqdn: h{k}.example.com}}" for k in range(2001))
    with pytest.raises(ConfigError, match="at most 2000 host names"):
        read(f"rules: [{{name: a, source: [{names}], destination: any, service: any, action: allow}}]")


def test_one_zone_may_have_every_endpoint() -> None:
    policy = read("zones: {a: , b: {endpoints: any}}\n" + RULE % ", from: b")
    assert (policy.mapped, policy.default_zone) == (False, "b")
    compiled, names = compile_policy(policy)
    assert names.zone(int(compiled.zones[0])) == "b"
    with pytest.raises(ConfigError, match="any or one of the zones a, b"):
        read("zones: {a: , b: {endpoints: any}}\n" + RULE % ", from: data")


# Applications as ports ----------------------------------------------------------------------------------


def accept(more: str, action: str = "allow", service: str = "any") -> Policy:
    text = (HALF % ("10.0.0.1", service)).replace("allow", action) + more
    return read_policy("policy.yaml", text + "applications: {ledger: [tcp/9000-9001]}\n", True)


def test_an_application_rule_becomes_ports_only_where_that_was_accepted() -> None:
    policy = accept("  application: [ssl, ledger]\n")
    (rule,) = policy.rules
    assert rule.applications is None
    assert [entry[1:4] for entry in rule.service or ()] == [(6, 443, 443), (6, 9000, 9001)]
    assert policy.warnings == (
        "policy.yaml:2: rule a is matched by ports, not by what it names (ssl, ledger): "
        "it allows whatever uses their standard ports",
    )
    compile_policy(policy)
    (rule,) = accept("  application: unheard-of\n", service="tcp/77").rules
    assert [entry[1:4] for entry in rule.service or ()] == [(6, 77, 77)]
    (rule,) = accept("", service="application-default").rules
    assert rule.service is not None
    assert len(rule.service) > 50
    (rule,) = accept("", action="deny", service="application-default").rules
    assert rule.service is None, "refused on every port: nothing passes that was to be stopped"


@pytest.mark.parametrize(
    ("more", "action", "said"),
    [
        ("  application: bittorrent\n", "allow", "bittorrent is not among them"),
        ("  application: ssh\n", "deny", "would pass on all but its standard ports"),
        ("  application: ssh\n", "reset-both", "would pass on all but its standard ports"),
    ],
)
def test_what_ports_cannot_say_stays_refused(more: str, action: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        accept(more, action)
    assert (caught.value.line, caught.value.key) == (7, "rules[1].application")
    assert said in caught.value.expected


def test_an_applications_own_ports_bound_its_rule_until_it_can_be_matched() -> None:
    (rule,) = read(HALF % ("any", "application-default") + "  application: ssh\n").rules
    assert rule.applications == ("ssh",)
    assert [entry[1:4] for entry in rule.service or ()] == [(6, 22, 22)]


# Resiliency ---------------------------------------------------------------------------------------------

MODED = "rules:\n  - {{name: a, source: any, destination: any, service: any, action: allow, resiliency: {mode}}}\n"


def test_a_rule_says_when_its_sessions_are_stored_and_the_node_says_it_for_the_others() -> None:
    text = (
        MODED.format(mode="min-age 3s")
        + "default-rules: {intrazone-default: {action: allow, resiliency: off}}\n"
    )
    compiled, _ = compile_policy(read(text), mode=STRICT)
    assert [int(row[RULE_MODE]) for row in compiled.rules] == [30, OFF, STRICT]
    compiled, _ = compile_policy(read(text))
    assert [int(row[RULE_MODE]) for row in compiled.rules] == [30, OFF, ASYNC]


@pytest.mark.parametrize("mode", ["sometimes", "min-age 3", "[strict]", "{min-age: 3s}"])
def test_a_mode_that_is_none_is_refused_where_it_stands(mode: str) -> None:
    with pytest.raises(
        ConfigError, match=r"policy.yaml:2:\d+: rules\[1\].resiliency: .*expected async, strict, off"
    ):
        read(MODED.format(mode=mode))
