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
  - {name: old, source: any, destination: any, service: any, action: deny, disabled: true}
default-rules:
  intrazone-default: {action: deny, log-end: true}
  interzone-default: {action: drop}
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
    assert [rule.name for rule in policy.rules] == ["site is public", "watch", "no telnet ever"]
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
    assert (len(compiled.ranges), len(compiled.services)) == (1, 1)


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


RULE = "rules:\n- {name: a, source: any, destination: any, service: any, action: allow%s}\n"
HALF = "rules:\n- name: a\n  source: %s\n  destination: any\n  service: %s\n  action: allow\n"

# (what is wrong, text, line, key, value, part of what was expected)
WRONG: list[tuple[str, str, int | None, str, str | None, str]] = [
    ("not a mapping", "- a\n", 1, "", "a list of 1", "a mapping"),
    ("a scalar only", "hello\n", 1, "", "hello", "a mapping"),
    ("unknown section", "\nrule: []\n", 2, "rule", "rule", "did you mean rules?"),
    ("section twice", "rules: []\nzones: {}\nrules: []\n", 3, "rules", "rules", "stands in line 1 already"),
    ("name of an address twice", "addresses:\n  a: 1.1.1.1\n  a: 1.1.1.2\n", 3, "addresses.a", "a", "once"),
    ("not YAML", "rules: [\n", 2, "", None, "YAML"),
    ("a tab", "zones:\n\tdata:\n", 2, "", None, "YAML"),
    ("a control character", "zones: \x07\n", 1, "", None, "printable text"),
    ("two documents", "rules: []\n---\nrules: []\n", 2, "", None, "one YAML document"),
    ("an alias", "addresses:\n  a: &x 1.1.1.1\n  b: *x\n", 3, "addresses.b", "*x", "not an alias"),
    ("a tag", "rules: !!python/name:os.system []\n", 1, "rules", None, "without a tag"),
    ("a list as key", "? [a]\n: 1\n", 1, "", None, "a plain word as key"),
    ("too deep", "rules: " + "[" * 20 + "]" * 20 + "\n", 1, "", None, "levels of nesting"),
    ("zones is a list", "zones: [data]\n", 1, "zones", "a list of 1", "a mapping"),
    ("a zone is a list", "zones:\n  data: [1]\n", 2, "zones.data", "a list of 1", "a mapping"),
    ("a zone is called any", "zones: {any: }\n", 1, "zones.any", "any", "other than any"),
    ("a zone has no name", "zones: {'': }\n", 1, "zones.", "", "a name"),
    ("a zone's name is too long", f"zones:\n  {'z' * 64}:\n", 2, f"zones.{'z' * 64}", "z" * 64, "at most 63"),
    ("a zone's name has a slash", "zones: {a/b: }\n", 1, "zones.a/b", "a/b", "a name"),
    (
        "misspelt key of a zone",
        "zones:\n  a:\n    endpoint: 1\n",
        3,
        "zones.a.endpoint",
        "endpoint",
        "endpoints",
    ),
    (
        "short endpoint",
        "zones: {a: {endpoints: vpce-12}}\n",
        1,
        "zones.a.endpoints",
        "vpce-12",
        "an endpoint",
    ),
    (
        "17 digits that do not fit",
        "zones:\n  a:\n    endpoints:\n    - 1\n    - vpce-10123456789abcdef\n",
        5,
        "zones.a.endpoints[2]",
        "vpce-10123456789abcdef",
        "an endpoint id",
    ),
    (
        "endpoint above 64 bits",
        f"zones: {{a: {{endpoints: {1 << 64}}}}}\n",
        1,
        "zones.a.endpoints",
        None,
        "an endp",
    ),
    ("octal endpoint", "zones: {a: {endpoints: 017}}\n", 1, "zones.a.endpoints", "017", "an endpoint id"),
    ("negative endpoint", "zones: {a: {endpoints: -1}}\n", 1, "zones.a.endpoints", "-1", "an endpoint id"),
    (
        "no endpoint in the list",
        "zones: {a: {endpoints: []}}\n",
        1,
        "zones.a.endpoints",
        "a list of 0",
        "a list",
    ),
    (
        "endpoint in two zones",
        "zones:\n  a: {endpoints: 18}\n  b: {endpoints: 0x12}\n",
        3,
        "zones.b.endpoints",
        "0x12",
        "in zone a already",
    ),
    ("no address", "addresses: {a: web}\n", 1, "addresses.a", "web", "an address (10.0.0.1"),
    ("octet over 255", "addresses: {a: 10.0.0.256}\n", 1, "addresses.a", "10.0.0.256", "an address"),
    ("prefix too long", "addresses: {a: 10.0.0.0/33}\n", 1, "addresses.a", "10.0.0.0/33", "from 0 to 32"),
    ("v6 prefix too long", 'addresses: {a: "::/129"}\n', 1, "addresses.a", "::/129", "from 0 to 128"),
    ("a netmask", "addresses: {a: 10.0.0.0/255.0.0.0}\n", 1, "addresses.a", None, "a prefix length"),
    (
        "bits after the prefix",
        "addresses: {a: 10.1.2.3/24}\n",
        1,
        "addresses.a",
        "10.1.2.3/24",
        "10.1.2.0/24",
    ),
    (
        "range upside down",
        "addresses: {a: 10.0.0.9-10.0.0.1}\n",
        1,
        "addresses.a",
        None,
        "not above its last",
    ),
    ("range over families", "addresses: {a: '10.0.0.1-::1'}\n", 1, "addresses.a", None, "within one family"),
    ("zone index", "addresses: {a: 'fe80::1%eth0'}\n", 1, "addresses.a", None, "no zone index"),
    (
        "an address's name is an address",
        "addresses: {10.0.0.1: 10.0.0.2}\n",
        1,
        "addresses.10.0.0.1",
        None,
        "value",
    ),
    ("an address is called any", "addresses: {any: 10.0.0.2}\n", 1, "addresses.any", "any", "a name"),
    ("empty group", "addresses: {a: []}\n", 1, "addresses.a", "a list of 0", "an address"),
    ("address of nothing", "addresses:\n  a:\n", 2, "addresses.a", "nothing", "an address"),
    (
        "address is a mapping",
        "addresses: {a: {ip: 1.1.1.1}}\n",
        1,
        "addresses.a.ip",
        "ip",
        "one of the keys fqdn, wildcard",
    ),
    (
        "misspelt member",
        "addresses: {web: 1.1.1.1, g: [wep]}\n",
        1,
        "addresses.g[1]",
        "wep",
        "did you mean web?",
    ),
    (
        "group in a circle",
        "addresses:\n  a: b\n  b: [1.1.1.1, c]\n  c: a\n",
        2,
        "addresses.a",
        "b",
        "a -> b -> c -> a",
    ),
    ("group of itself", "addresses: {a: [a]}\n", 1, "addresses.a", None, "a -> a"),
    ("any in a group", "addresses: {a: [any]}\n", 1, "addresses.a[1]", "any", "an address"),
    ("port over 65535", "services: {a: tcp/65536}\n", 1, "services.a", "tcp/65536", "up to 65535"),
    ("ports upside down", "services: {a: tcp/90-80}\n", 1, "services.a", "tcp/90-80", "not above its last"),
    ("two ports", "services: {a: 'tcp/80,443'}\n", 1, "services.a", "tcp/80,443", "a port or a range"),
    ("no port", "services: {a: tcp/}\n", 1, "services.a", "tcp/", "a port or a range"),
    ("protocol over 255", "services: {a: protocol/256}\n", 1, "services.a", "protocol/256", "from 0 to 255"),
    ("unknown protocol", "services: {a: sctp/80}\n", 1, "services.a", "sctp/80", "a service"),
    ("a number only", "services: {a: 443}\n", 1, "services.a", "443", "tcp/443"),
    (
        "a service's name is a service",
        "services: {icmp: tcp/80}\n",
        1,
        "services.icmp",
        "icmp",
        "not a value",
    ),
    ("service without protocol", "services: {a: {port: 80}}\n", 1, "services.a", None, "the key protocol"),
    (
        "service of a strange protocol",
        "services: {a: {protocol: 6}}\n",
        1,
        "services.a.protocol",
        "6",
        "tcp, udp",
    ),
    (
        "service with a wrong source port",
        "services:\n  a:\n    protocol: tcp\n    source-port: high\n",
        4,
        "services.a.source-port",
        "high",
        "a port or a range",
    ),
    ("rules is a mapping", "rules: {a: 1}\n", 1, "rules", "a mapping of 1", "a list of rules"),
    ("a rule is a word", "rules: [allow]\n", 1, "rules[1]", "allow", "a mapping"),
    ("a rule without source", "rules:\n- name: a\n  action: allow\n", 2, "rules[1]", None, "the key source"),
    (
        "a rule without action",
        "rules:\n- {name: a, source: any, destination: any, service: any}\n",
        2,
        "rules[1]",
        None,
        "the key action",
    ),
    (
        "misspelt key of a rule",
        RULE % ", sevice: any",
        2,
        "rules[1].sevice",
        "sevice",
        "did you mean service?",
    ),
    ("a key twice in a rule", RULE % ", action: deny", 2, "rules[1].action", "action", "once"),
    (
        "a key from elsewhere",
        RULE % ", schedule: nights",
        2,
        "rules[1].schedule",
        "schedule",
        "one of the",
    ),
    (
        "unknown action",
        HALF.replace("allow", "accept") % ("any", "any"),
        6,
        "rules[1].action",
        "accept",
        "allow, d",
    ),
    (
        "action in capitals",
        HALF.replace("allow", "ALLOW") % ("any", "any"),
        6,
        "rules[1].action",
        "ALLOW",
        "allow, ",
    ),
    (
        "any is negated",
        RULE % ", negate-source: true",
        2,
        "rules[1].negate-source",
        "true",
        "a source other than any",
    ),
    (
        "an intrazone rule with an end",
        RULE % ", rule-type: intrazone, to: data",
        2,
        "rules[1].to",
        "data",
        "no zones",
    ),
    (
        "unknown type",
        RULE % ", rule-type: intra",
        2,
        "rules[1].rule-type",
        "intra",
        "did you mean intrazone?",
    ),
    ("application in capitals", RULE % ", application: SSL", 2, "rules[1].application", "SSL", "small"),
    ("no application", RULE % ", application: []", 2, "rules[1].application", "a list of 0", "application"),
    ("a host with a path", RULE % ", host: a.b/c", 2, "rules[1].host", "a.b/c", "a host name"),
    ("a star in a host", RULE % ", host: ['a.*.b']", 2, "rules[1].host[1]", "a.*.b", "a host name"),
    ("any and a host", RULE % ", host: [a.b, any]", 2, "rules[1].host[2]", "any", "stand alone"),
    ("a tag that is no name", RULE % ", tags: [a/b]", 2, "rules[1].tags[1]", "a/b", "a name"),
    ("flag is a number", RULE % ", log-end: 1", 2, "rules[1].log-end", "1", "true or false"),
    ("flag is empty", RULE % ", disabled: ", 2, "rules[1].disabled", "nothing", "true or false"),
    ("unknown zone", RULE % ", from: dota", 2, "rules[1].from", "dota", "did you mean data?"),
    ("empty list of zones", RULE % ", to: []", 2, "rules[1].to", "a list of 0", "any, the name of a zone"),
    ("any and a zone", RULE % ", to: [data, any]", 2, "rules[1].to[2]", "any", "any to stand alone"),
    ("unknown source", HALF % ("web", "any"), 3, "rules[1].source", "web", "an address"),
    ("any and an address", HALF % ("[any, 1.1.1.1]", "any"), 3, "rules[1].source[1]", "any", "stand alone"),
    ("no source", HALF % ("[]", "any"), 3, "rules[1].source", "a list of 0", "an address"),
    ("unknown service", HALF % ("any", "[icmp, http]"), 5, "rules[1].service[2]", "http", "a service"),
    (
        "a rule's name twice",
        "rules:\n"
        "- {name: a, source: any, destination: any, service: any, action: allow}\n"
        "- {name: a, source: any, destination: any, service: any, action: deny}\n",
        3,
        "rules[2].name",
        "a",
        "line 2 has it already",
    ),
    (
        "a rule with a reserved name",
        HALF.replace("name: a", "name: interzone-default") % ("any", "any"),
        2,
        "rules[1].name",
        "interzone-default",
        "default-rules",
    ),
    (
        "a rule's name is too long",
        HALF.replace("name: a", f"name: {'n' * 64}") % ("any", "any"),
        2,
        "rules[1].name",
        None,
        "63",
    ),
    (
        "a rule's name is a list",
        HALF.replace("name: a", "name: [a]") % ("any", "any"),
        2,
        "rules[1].name",
        None,
        "a name",
    ),
    (
        "a long description",
        RULE % f", description: {'d' * 1025}",
        2,
        "rules[1].description",
        None,
        "at most 1024",
    ),
    (
        "unknown default rule",
        "default-rules: {intrazone: {}}\n",
        1,
        "default-rules.intrazone",
        None,
        "intrazone-default",
    ),
    (
        "default rule is a word",
        "default-rules:\n  intrazone-default: allow\n",
        2,
        "default-rules.intrazone-default",
        "allow",
        "a mapping",
    ),
    (
        "default rule with a source",
        "default-rules:\n  intrazone-default:\n    source: any\n",
        3,
        "default-rules.intrazone-default.source",
        "source",
        "action, log-start, log-end",
    ),
    (
        "default rule with an unknown action",
        "default-rules:\n  interzone-default:\n    action: reset\n",
        3,
        "default-rules.interzone-default.action",
        "reset",
        "allow, deny, drop",
    ),
]


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
