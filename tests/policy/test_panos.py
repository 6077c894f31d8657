"""The configuration that boots the vendor's firewall is loaded as it was written, or not, and then it is said why."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from everwall.config import ConfigError
from everwall.policy.model import ICMP, AddressRange, Policy, Rule, Service
from everwall.policy.panos import Panos, load_panos, read_panos
from everwall.policy.rules import read_policy
from everwall.policy.settings import SessionSettings
from tests.policy.vendor import DENY, ZONE, address, config, group, members, rule, service

FILES = Path(__file__).parent / "files"
INSPECTION = FILES / "inspection.xml"


def load(text: str, **more: bool) -> Panos:
    return load_panos("bootstrap.xml", text, **more)


def only(found: Panos) -> Rule:
    (one,) = found.policy.rules
    return one


def without_places(policy: Policy) -> Policy:
    """What a policy decides, wherever it stands."""
    return replace(
        policy,
        file="",
        zones=tuple(replace(zone, line=0) for zone in policy.zones),
        rules=tuple(replace(one, line=0) for one in policy.rules),
        warnings=(),
    )


def four(text: str, last: str = "") -> AddressRange:
    low, high = (int.from_bytes(bytes(map(int, part.split(".")))) for part in (text, last or text))
    return AddressRange(4, low, high)


# A whole file ---------------------------------------------------------------------------------------------


def test_a_real_file_is_loaded_as_it_was_written() -> None:
    found = load_panos(INSPECTION)
    assert [one.name for one in found.policy.rules] == [
        "web in",
        "partner",
        "time",
        "not from outside",
        "old telnet",
        "clean up",
    ]
    web, partner, time, outside, telnet, clean = found.policy.rules
    assert (web.from_zones, web.to_zones, web.source) == (("web",), ("web",), None)
    assert web.destination == (
        four("10.1.2.10"),
        four("10.1.2.11"),
        AddressRange(6, 0x20010DB800010000 << 64, ((0x20010DB800010000 + 1) << 64) - 1),
    )
    assert [entry[1:4] for entry in web.service or ()] == [(6, 80, 80), (6, 443, 443), (6, 8080, 8089)]
    assert (web.log_start, web.log_end, web.tags) == (True, True, ("web", "reviewed -2026-"))
    assert web.description == "everybody may see the site and its proxies"
    assert (partner.rule_type, partner.from_zones, partner.to_zones) == ("intrazone", None, None)
    assert partner.source == (four("198.51.100.16", "198.51.100.31"),)
    assert partner.source_names == ("vpn.partner.example",)
    assert partner.destination == (four("10.1.2.0", "10.1.2.255"),), (
        "bits after the prefix do not count there"
    )
    assert Service(0, 6, 5432, 5432, 0, 65535) in (partner.service or ())
    assert time.source is not None
    assert (len(time.source), time.source[0], time.source[-1]) == (
        32,
        four("10.20.1.0", "10.20.1.255"),
        four("10.20.249.0", "10.20.249.255"),
    )
    assert time.service == (Service(0, 17, 123, 123, 123, 123), Service(0, 17, 123, 123, 1024, 65535))
    assert not time.log_end
    assert (outside.negate_source, outside.action, outside.icmp_unreachable) == (True, "reset-both", True)
    assert not web.icmp_unreachable
    assert outside.source == (
        four("10.1.0.0", "10.1.255.255"),
        four("10.9.0.5", "10.9.0.9"),
        four("10.1.0.1"),
    )
    assert telnet.disabled
    assert (clean.action, clean.service) == ("deny", None)
    assert (found.policy.intrazone_default.action, found.policy.intrazone_default.log_end) == ("deny", True)
    assert found.policy.interzone_default.action == "drop"
    assert found.policy.settings == SessionSettings(tcp=1800, udp=60, tcp_handshake=20, reject_non_syn=False)
    assert found.interfaces == {"ethernet1/1": "gwlb", "ethernet1/1.10": "web", "ethernet1/1.20": "db"}
    assert found.left_out == ()


@pytest.mark.parametrize("associated", [{}, {"ethernet1/1.10": ["vpce-0123456789abcdef", "17"]}])
def test_what_is_written_as_yaml_reads_back_equal(associated: dict[str, list[str]]) -> None:
    found = load_panos(INSPECTION, endpoints=associated)
    again = read_policy("policy.yaml", found.yaml())
    assert without_places(again) == without_places(found.policy)


def test_associated_endpoints_decide_about_zones() -> None:
    policy = load_panos(INSPECTION, endpoints={"ethernet1/1.10": ["17"], "ethernet1/1.20": ["0x12"]}).policy
    assert {zone.name: zone.endpoints for zone in policy.zones} == {"gwlb": (), "web": (17,), "db": (18,)}
    assert policy.mapped
    with pytest.raises(ConfigError, match="'ethernet1/2': expected an interface that is in a zone"):
        load_panos(INSPECTION, endpoints={"ethernet1/2": ["17"]})


def test_without_associations_everything_is_in_the_data_interfaces_zone() -> None:
    policy = load_panos(INSPECTION).policy
    assert (policy.mapped, policy.default_zone) == (False, "gwlb")
    alone = load(config(rule(from_="only"), zones=ZONE.replace('"data"', '"only"').replace("1/1", "1/7")))
    assert alone.policy.default_zone == "only"
    nowhere = load(config(rule(), zones=""))
    assert nowhere.policy.default_zone == "data"
    assert any("is in no zone" in warning for warning in nowhere.policy.warnings)


def test_a_rule_that_allows_has_nothing_to_say_by_icmp() -> None:
    text = config(rule().replace("</action>", "</action><icmp-unreachable>yes</icmp-unreachable>"))
    (found,) = load(text).policy.rules
    assert (found.action, found.icmp_unreachable) == ("allow", False)


def test_what_is_not_used_is_named_with_its_line() -> None:
    said = "\n".join(load_panos(INSPECTION).policy.warnings)
    for words in (
        "inspection.xml:67: zone web: zone protection is not used",
        "session setting timeout-scan is not used",
        "1 nat rule is not used",
        "service long-lived: its own time-outs are not used",
        "rule web in forwards its log, which is not used",
        "rule web in has security profiles, which are not used: content is not inspected",
        "address tagged: a dynamic group",
        "rule clean up refuses every application at its own ports",
    ):
        assert words in said


SPOKES = FILES / "spokes.xml"


def test_a_file_whose_rules_name_applications_is_closed_until_that_is_accepted() -> None:
    found = load_panos(SPOKES, endpoints={"ethernet1/2": ["17"]})
    assert [one.name for one in found.policy.rules] == ["load-test"]
    assert len(found.left_out) == 6
    assert found.interfaces == {"ethernet1/1": "untrust", "ethernet1/2": "trust", "loopback.1": "trust"}
    said = "\n".join(found.policy.warnings)
    assert "spokes.xml: 2 nat rules are not used" in said
    assert "intrazone-default is not overridden: it denies here, where the vendor's allows" in said


def test_accepted_its_applications_are_ports() -> None:
    found = load_panos(SPOKES, None, True, endpoints={"ethernet1/2": ["17"]})
    rules = {one.name: one for one in found.policy.rules}
    assert found.left_out == ()
    assert ports(rules["inbound-web"]) == [(6, 80, 80), (6, 8080, 8080)], "the service that it names"
    assert ports(rules["inbound-ssh"]) == [(6, 22, 22)]
    assert ports(rules["outbound"]) == [(6, 53, 53), (6, 80, 80), (6, 443, 443), (17, 53, 53), (17, 123, 123)]
    assert ports(rules["load-test"]) == [(6, 5001, 5001)]
    assert set(ICMP) <= set(rules["all-ping"].service or ())
    assert (6, 4444, 4444) not in ports(rules["east-west"])
    said = "\n".join(found.policy.warnings)
    assert "rule inbound-web matches nothing: there is no traffic from its zones to its zones" in said
    assert "names applications (ping, traceroute) and is loaded by ports" in said
    assert without_places(read_policy("p.yaml", found.yaml())) == without_places(found.policy)


# Default rules ---------------------------------------------------------------------------------------------


def test_what_the_file_does_not_override_denies_and_it_says_what_the_vendor_does() -> None:
    found = load(config(rule(), defaults=""))
    assert (found.policy.intrazone_default.action, found.policy.interzone_default.action) == ("deny", "deny")
    (warning,) = [text for text in found.policy.warnings if "vendor" in text]
    assert "intrazone-default is not overridden: it denies here, where the vendor's allows" in warning
    # Logging is set and the action is not: the vendor still allows.
    entry = '<entry name="intrazone-default"><log-end>yes</log-end></entry>'
    found = load(config(rule(), defaults=entry))
    assert (found.policy.intrazone_default.action, found.policy.intrazone_default.log_end) == ("deny", True)
    assert any("not overridden" in text for text in found.policy.warnings)


def test_a_default_rule_that_is_written_is_taken() -> None:
    entry = '<entry name="intrazone-default"><action>allow</action></entry>'
    found = load(config(rule(), defaults=entry))
    assert found.policy.intrazone_default.action == "allow"
    assert not any("vendor" in text for text in found.policy.warnings)
    with pytest.raises(
        ConfigError, match=r"intrazone-default\.action: 'permit': expected one of allow, deny"
    ):
        load(config(rule(), defaults=entry.replace("allow", "permit")))
    for twice in (
        entry + entry.replace("allow", "deny"),
        entry.replace("<action>", "<action>deny</action><action>"),
    ):
        with pytest.raises(ConfigError, match="each default rule, and each of its settings, once"):
            load(config(rule(), defaults=twice))


# Rules that would match more than they say ---------------------------------------------------------------

UNMATCHABLE: list[tuple[str, str, str]] = [
    ("users", rule(more=members("source-user", "corp\\bob")), "it asks for users (corp\\bob)"),
    ("known users", rule(more=members("source-user", "known-user")), "it asks for users (known-user)"),
    (
        "a category",
        rule(more=members("category", "gambling", "x", "y", "z")),
        "categories (gambling, x, y, ...)",
    ),
    ("HIP", rule(more=members("source-hip", "patched")), "device checks (HIP) (patched)"),
    ("HIP there", rule(more=members("destination-hip", "patched")), "device checks (HIP) (patched)"),
    ("HIP of old", rule(more=members("hip-profiles", "patched")), "device checks (HIP) (patched)"),
    ("a device", rule(more=members("source-device", "camera")), "it asks for devices (camera)"),
    ("a schedule", rule(more="<schedule>nights</schedule>"), "it asks for a schedule (nights)"),
    ("something new", rule(more=members("source-imsi", "123")), "source-imsi, which is not known here (123)"),
    ("something deep", rule(more="<target><devices><entry name='1'/></devices></target>"), "target devices"),
    ("an application", rule(application="ssl"), "it names applications (ssl) and only ports can be matched"),
    (
        "ports of any",
        rule(service="application-default"),
        "names applications (every application at its own ports)",
    ),
    ("a filter", rule(application="risky"), "it names applications (risky)"),
    (
        "a region",
        rule(source="US"),
        "US is no address or address group of this file (a region or an external",
    ),
    ("an unknown service", rule(service="tcp-1"), "tcp-1 is no service or service group of this file"),
    ("a zone of elsewhere", rule(from_="moon"), "zone moon is not in the file"),
    (
        "a dynamic group",
        rule(source="tagged"),
        "tagged: a dynamic group, whose members come and go with tags",
    ),
    ("a group of it", rule(destination="outer"), "outer: tagged: a dynamic group"),
    ("a group in a circle", rule(source="round"), "a group within itself"),
    ("an empty group", rule(source="empty"), "empty: a group without members"),
    ("a template's value", rule(source="hole"), "hole: '${cidr}' is no address"),
    ("a scattered wildcard", rule(source="wild"), "at most 1024 ranges (this one is 65536)"),
    ("a short name", rule(source="short"), "'localhost' is no full host name"),
    ("SCTP", rule(service="sctp"), "sctp: neither TCP nor UDP"),
    ("a wrong port", rule(service="high"), "high: '70000' (expected ports up to 65535)"),
    (
        "a negated name",
        rule(source="host", more="<negate-source>yes</negate-source>"),
        "has no addresses until",
    ),
    (
        "a negated group of names",
        rule(destination="hosts", more="<negate-destination>yes</negate-destination>"),
        "it negates the destination host, a host name",
    ),
    ("any negated", rule(more="<negate-source>yes</negate-source>"), "it negates any source"),
    ("maybe negated", rule(source="1.1.1.1", more="<negate-source>maybe</negate-source>"), "not yes or no"),
    ("no source", rule(source=()), "it has no source"),
    ("no zone", rule(to=()), "it has no to"),
    ("no service", rule(service=()), "it has no service"),
    ("two sources", rule(more=members("source", "10.0.0.1")), "it has source twice"),
    ("ports without end", rule(service="many"), "many: more than 1024 pairs of ports"),
    ("two of one name", rule(source="twice"), "twice: there are two of that name"),
    ("a new type", rule(more="<rule-type>local</rule-type>"), "its rule-type local is not known"),
]
OBJECTS = (
    '<address-group><entry name="tagged"><dynamic><filter>web</filter></dynamic></entry></address-group>'
    + group("outer", "tagged")
    + group("round", "around")
    + group("around", "round")
    + group("empty")
    + group("hosts", "host")
    + address("twice", "ip-netmask", "10.0.0.1")
    + group("twice", "host")
    + address("hole", "ip-netmask", "${cidr}")
    + address("wild", "ip-wildcard", "10.0.0.0/0.255.255.0")
    + address("short", "fqdn", "localhost")
    + address("host", "fqdn", "a.example.com")
    + service("sctp", "sctp", "80")
    + service("high", "tcp", "80,70000")
    + service("many", "tcp", ",".join(map(str, range(1, 1026))))
    + '<application-filter><entry name="risky"><risk><member>5</member></risk></entry></application-filter>'
)


@pytest.mark.parametrize(
    ("text", "why"), [case[1:] for case in UNMATCHABLE], ids=[case[0] for case in UNMATCHABLE]
)
def test_a_rule_that_would_become_wider_is_not_loaded_and_says_why(text: str, why: str) -> None:
    found = load(config(text, rule("b", source="192.0.2.1"), objects=OBJECTS))
    assert [one.name for one in found.policy.rules] == ["b"]
    (said,) = found.left_out
    assert said.startswith("bootstrap.xml:2: rule a is not loaded: ")
    assert why in said
    assert said in found.policy.warnings


@pytest.mark.parametrize(
    ("text", "why"), [case[1:] for case in UNMATCHABLE], ids=[case[0] for case in UNMATCHABLE]
)
def test_leaving_out_a_rule_that_refuses_may_open_what_it_closed(text: str, why: str) -> None:
    for action in ("deny", "drop", "reset-client"):
        refusing = text.replace("<action>allow", f"<action>{action}")
        if "every application" in why:
            continue  # on every port it refuses more than it says, and that is loaded
        with pytest.raises(ConfigError) as caught:
            load(config(refusing, rule("b"), objects=OBJECTS))
        assert (caught.value.line, caught.value.key, caught.value.value) == (2, "rule", "a")
        assert "without it rule b (line 3) would allow what it refuses" in caught.value.expected
        # Nothing allows after it: what it refused is refused all the same.
        found = load(config(rule("b", source="192.0.2.1"), refusing, objects=OBJECTS))
        assert [one.name for one in found.policy.rules] == ["b"]


def test_a_default_rule_that_allows_needs_every_rule_before_it() -> None:
    text = rule(action="deny", more=members("source-user", "eve"))
    allow = '<entry name="intrazone-default"><action>allow</action></entry>'
    with pytest.raises(ConfigError, match="without it a default rule would allow what it refuses"):
        load(config(text, defaults=allow))


def test_an_action_that_nobody_knows_may_be_one_that_refuses() -> None:
    with pytest.raises(ConfigError, match="its action is quarantine, not one of"):
        load(config(rule(action="quarantine"), rule("b")))
    with pytest.raises(ConfigError, match="its action is missing"):
        load(config(rule().replace("<action>allow</action>", ""), rule("b")))


def test_the_operator_may_do_without_a_rule() -> None:
    text = config(rule(action="deny", more=members("source-user", "eve")), rule("b"))
    found = load_panos("bootstrap.xml", text, leave_out=["a"])
    assert [one.name for one in found.policy.rules] == ["b"]
    assert found.left_out == ("bootstrap.xml:2: rule a is left out, as was asked for",)
    with pytest.raises(ConfigError, match="'c': expected the name of a security rule that is to be left out"):
        load_panos("bootstrap.xml", text, leave_out=["c"])


def test_a_disabled_rule_that_cannot_be_matched_is_left_out_too() -> None:
    # Loaded without what it asks for, it would be wider on the day that somebody enables it.
    disabled = rule(action="deny", more=members("source-user", "eve") + "<disabled>yes</disabled>")
    found = load(config(disabled, rule("b")))
    assert [one.name for one in found.policy.rules] == ["b"]
    assert "users (eve)" in found.left_out[0]


# Applications as ports --------------------------------------------------------------------------------------

CUSTOM = (
    "<application><entry name='ledger'><default><port><member>tcp/9000-9001,9443</member><member>udp/9000</member>"
    "</port></default></entry><entry name='odd'><default><port><member>tcp/dynamic</member></port></default></entry>"
    "<entry name='tunnel'><default><ident-by-ip-protocol>47</ident-by-ip-protocol></default></entry></application>"
    "<application-group><entry name='office'><members><member>dns</member><member>mail</member></members></entry>"
    "<entry name='mail'><members><member>smtp</member><member>office</member></members></entry></application-group>"
)


def ports(one: Rule) -> list[tuple[int, int, int]]:
    return sorted(entry[1:4] for entry in one.service or ())


@pytest.mark.parametrize(
    ("application", "expected"),
    [
        ("ssl", [(6, 443, 443)]),
        (("ssl", "web-browsing"), [(6, 80, 80), (6, 443, 443)]),
        ("office", [(6, 25, 25), (6, 53, 53), (6, 465, 465), (6, 587, 587), (17, 53, 53)]),
        ("ledger", [(6, 9000, 9001), (6, 9443, 9443), (17, 9000, 9000)]),
        ("tunnel", [(47, 0, 65535)]),
    ],
)
@pytest.mark.parametrize("where", ["any", "application-default"])
def test_applications_become_their_standard_ports_where_that_was_accepted(
    application: str | tuple[str, ...], expected: list[tuple[int, int, int]], where: str
) -> None:
    text = config(rule(application=application, service=where), objects=CUSTOM)
    assert load(text).policy.rules == ()
    found = load(text, accept_ports_for_applications=True)
    assert ports(only(found)) == expected
    assert only(found).applications is None
    assert any("it allows whatever uses their standard ports" in text for text in found.policy.warnings)
    assert without_places(read_policy("p.yaml", found.yaml())) == without_places(found.policy)


def test_ping_is_icmp() -> None:
    found = load(config(rule(application="ping")), accept_ports_for_applications=True)
    assert only(found).service == ICMP


def test_a_service_of_its_own_bounds_an_application_rule() -> None:
    text = config(rule(application="unknown-app", service="p"), objects=service("p", "tcp", "8443"))
    assert ports(only(load(text, accept_ports_for_applications=True))) == [(6, 8443, 8443)]


def test_any_application_at_its_own_ports_is_the_ports_of_all_that_are_known() -> None:
    found = load(config(rule(service="application-default")), accept_ports_for_applications=True)
    assert {(6, 443, 443), (17, 53, 53), (6, 5432, 5432)} <= set(ports(only(found)))
    assert (6, 4444, 4444) not in ports(only(found))


@pytest.mark.parametrize("application", ["bittorrent", "odd", "risky"])
def test_an_application_without_standard_ports_stays_out(application: str) -> None:
    text = config(rule(application=application), objects=CUSTOM + OBJECTS)
    found = load(text, accept_ports_for_applications=True)
    assert found.policy.rules == ()
    assert application in found.left_out[0]


@pytest.mark.parametrize("where", ["any", "application-default"])
@pytest.mark.parametrize("members", ["", "<members/>", "<members><member>none</member></members>"])
def test_a_group_of_no_applications_allows_none(members: str, where: str) -> None:
    group = f"<application-group><entry name='none'>{members}</entry></application-group>"
    text = config(rule(application="none", service=where), objects=group)
    found = load(text, accept_ports_for_applications=True)
    assert found.policy.rules == ()
    assert "its application groups (none) have no members" in found.left_out[0]


def test_a_refused_application_may_not_pass_on_another_port() -> None:
    refused = config(rule(action="deny", application="ssh"), rule("b"))
    with pytest.raises(ConfigError, match="would pass on all but its standard ports"):
        load(refused, accept_ports_for_applications=True)
    found = load(
        config(rule(action="deny", application="ssh", service="application-default"), rule("b")),
        accept_ports_for_applications=True,
    )
    assert ports(found.policy.rules[0]) == [(6, 22, 22)]


# Objects --------------------------------------------------------------------------------------------------


def test_names_that_are_not_ours_are_changed_and_said() -> None:
    text = config(
        rule("in/out", source=("10.0.0.1", "any-host (old)")),
        objects=address("10.0.0.1", "ip-netmask", "10.0.0.99")
        + address("any-host (old)", "ip-netmask", "10.0.0.2"),
    )
    found = load(text)
    assert only(found).name == "rule in-out"
    assert only(found).source == (four("10.0.0.99"), four("10.0.0.2")), (
        "the object, not the address it is called"
    )
    said = "\n".join(found.policy.warnings)
    assert "address 10.0.0.1 is called address 10.0.0.1 here" in said
    assert "address any-host (old) is called address any-host -old- here" in said
    assert without_places(read_policy("p.yaml", found.yaml())) == without_places(found.policy)


def test_a_name_that_is_made_is_nobody_elses() -> None:
    objects = address("10.0.0.1", "ip-netmask", "10.0.0.99") + address(
        "address 10.0.0.1", "ip-netmask", "10.0.0.2"
    )
    found = load(config(rule(source=("10.0.0.1", "address 10.0.0.1")), objects=objects))
    assert only(found).source == (four("10.0.0.99"), four("10.0.0.2"))


def test_two_rules_of_one_name_are_told_apart() -> None:
    found = load(config(rule("a", source="10.0.0.1"), rule("a", source="10.0.0.2")))
    assert [one.name for one in found.policy.rules] == ["a", "rule a"]


def test_objects_of_the_virtual_system_hide_shared_ones() -> None:
    found = load(
        config(
            rule(source="h", destination="s"),
            objects=address("h", "ip-netmask", "10.0.0.1"),
            shared=address("h", "ip-netmask", "10.9.9.9") + address("s", "ip-range", "10.0.0.3 - 10.0.0.5"),
        )
    )
    assert (only(found).source, only(found).destination) == (
        (four("10.0.0.1"),),
        (four("10.0.0.3", "10.0.0.5"),),
    )


def test_the_vendors_own_services_need_no_definition() -> None:
    assert ports(only(load(config(rule(service="service-http"))))) == [(6, 80, 80), (6, 8080, 8080)]
    text = config(rule(service="service-http"), objects=service("service-http", "tcp", "81"))
    assert ports(only(load(text))) == [(6, 81, 81)]


def test_an_intrazone_rule_ends_where_it_begins() -> None:
    found = load(config(rule(to=(), from_="data", more="<rule-type>intrazone</rule-type>")))
    assert (only(found).rule_type, only(found).from_zones, only(found).to_zones) == (
        "intrazone",
        ("data",),
        None,
    )


# Sessions, and files that are none ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("<timeout-tcp>0</timeout-tcp>", "1:1: timeout-tcp: '0': expected seconds from 1 to 15999999"),
        (
            "<timeout-tcpinit>61</timeout-tcpinit>",
            "1:1: timeout-tcpinit: '61': expected seconds from 1 to 60",
        ),
        ("<timeout-udp>ten</timeout-udp>", "1:1: timeout-udp: 'ten': expected seconds from 1 to 15999999"),
        ("<tcp-reject-non-syn>1</tcp-reject-non-syn>", "1: tcp-reject-non-syn: '1': expected yes or no"),
    ],
)
def test_a_session_setting_out_of_its_bounds_is_refused(setting: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(config(setting=f"<session>{setting}</session>"))
    assert str(caught.value) == f"bootstrap.xml:{line}"


WRONG: list[tuple[str, str, str]] = [
    ("nothing", "", "bootstrap.xml:1:1: expected XML (no element found)"),
    ("cut off", config()[:-20], "expected XML"),
    ("not XML", "rules: []", "bootstrap.xml:1:1: expected XML"),
    ("another document", "<html/>", "bootstrap.xml:1: 'html': expected a configuration of PAN-OS (<config>)"),
    ("no device", "<config/>", "expected devices/entry/vsys/entry with the rules"),
    ("too deep", "<a>" * 80 + "</a>" * 80, "at most 64 levels of nesting"),
    (
        "an entity bomb",
        '<!DOCTYPE config [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>\n' + config(rule("&b;")),
        "bootstrap.xml:1: 'DOCTYPE': expected no document type",
    ),
    (
        "a file of the machine",
        '\n<!DOCTYPE config [<!ENTITY x SYSTEM "file:///etc/passwd">]>\n<config>&x;</config>',
        "bootstrap.xml:2: 'DOCTYPE': expected no document type",
    ),
    (
        "pushed rules",
        config(top="<panorama><vsys><entry name='vsys1'><pre-rulebase/></entry></vsys></panorama>"),
        "what Panorama pushes comes before its own rules",
    ),
]


@pytest.mark.parametrize(("text", "said"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_a_file_that_cannot_be_read_is_refused_with_its_place(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_panos("bootstrap.xml", text)
    assert said in str(caught.value)


def test_other_virtual_systems_are_named() -> None:
    text = config(rule()).replace("<vsys>", "<vsys><entry name='vsys7'><zone/></entry>")
    found = load(text)
    assert [one.name for one in found.policy.rules] == ["a"]
    assert any("virtual system vsys7 is not used" in warning for warning in found.policy.warnings)


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_file_is_read_or_refused_by_name(seed: int) -> None:
    draw = random.Random(seed)
    text = INSPECTION.read_text()
    at = draw.randrange(len(text))
    text = text[:at] + draw.choice([*"<>/&;'\"=! a0", ""]) + text[at + draw.choice([0, 1, 5]) :]
    said = ""
    try:
        found = load(text)
    except ConfigError as error:
        said = str(error)
    else:
        assert without_places(read_policy("p.yaml", found.yaml())) == without_places(found.policy)
    assert said.isprintable()


def test_the_other_tests_ask_about_a_file_that_denies_by_default() -> None:
    assert load(config(defaults=DENY)).policy.warnings == (
        "bootstrap.xml: no rule allows anything: everything is denied",
    )
