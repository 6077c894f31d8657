"""Fragments as they stand in the configurations of other people's firewalls, chosen to be misread: none opens more than
was written."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from everwall.config import ConfigError
from everwall.policy.explain import Question, explain
from everwall.policy.panos import Panos, load_panos
from tests.policy.vendor import DENY, address, config, group, members, rule, service

NEGATE_SOURCE = "<negate-source>yes</negate-source>"
NEGATE_DESTINATION = "<negate-destination>yes</negate-destination>"
PROFILES = (
    "<profile-setting><profiles><virus><member>default</member></virus><vulnerability><member>strict</member>"
    "</vulnerability></profiles></profile-setting>"
)
TWO_ZONES = (
    '<entry name="trust"><network><layer3><member>ethernet1/1.10</member></layer3></network></entry>'
    '<entry name="untrust"><network><layer3><member>ethernet1/1.20</member></layer3></network></entry>'
)
ENDPOINTS = {"ethernet1/1.10": ["10"], "ethernet1/1.20": ["20"]}


def load(text: str, **more: object) -> Panos:
    return load_panos("bootstrap.xml", text, **more)  # type: ignore[arg-type]


def passes(
    found: Panos,
    source: str,
    destination: str,
    port: int = 443,
    protocol: int = 6,
    zones: tuple[str, str] = ("data", "data"),
) -> bool:
    """Whether the policy lets a session begin, by a plain reading of its rules."""
    asked = Question(*zones, ip_address(source), ip_address(destination), protocol, 50_000, port)
    return explain(found.policy, asked).rule.action == "allow"


def left_out(found: Panos) -> str:
    """Why the one rule that was not loaded was not."""
    (said,) = found.left_out
    return said


# Addresses ------------------------------------------------------------------------------------------------


def test_everywhere_but_the_company() -> None:
    objects = (
        address("corp-v4", "ip-netmask", "10.0.0.0/8")
        + address("corp-v6", "ip-netmask", "2001:db8::/32")
        + address("dmz", "ip-range", "192.0.2.16-192.0.2.31")
        + group("corp-all", "corp-v4", "corp-nested")
        + group("corp-nested", "corp-v6", "dmz")
    )
    found = load(
        config(
            rule("internet", source="corp-v4", destination="corp-all", more=NEGATE_DESTINATION),
            objects=objects,
        )
    )
    for destination, there in (
        ("198.51.100.7", True),
        ("192.0.2.15", True),
        ("192.0.2.16", False),
        ("192.0.2.31", False),
        ("10.255.255.255", False),
        ("11.0.0.0", True),
    ):
        assert passes(found, "10.1.1.1", destination) is there, destination
    assert not passes(found, "198.51.100.7", "198.51.100.8"), "its source is not negated"


@pytest.mark.parametrize(
    ("objects", "source", "why"),
    [
        (
            "<address-group><entry name=\"quarantined\"><dynamic><filter>'infected' or 'compromised'</filter></dynamic>"
            "</entry></address-group>" + group("bad", "quarantined"),
            "bad",
            "a dynamic group",
        ),
        (address("cdn", "fqdn", "cdn.example.com") + group("bad", "cdn"), "bad", "has no addresses until"),
        ("", "RU", "a region or an external list"),
        (
            '<external-list><entry name="edl-bad"><type><ip><url>https://feed.example.com/ip.txt</url></ip></type></entry>'
            "</external-list>",
            "edl-bad",
            "a region or an external list",
        ),
        ("", "panw-highrisk-ip-list", "a region or an external list"),
    ],
    ids=["dynamic group", "host name", "region", "external list", "the vendor's list"],
)
def test_everybody_but_those_whom_nobody_can_list(objects: str, source: str, why: str) -> None:
    """Without the list, the negation of nothing would be everybody."""
    allowed = load(config(rule(source=source, more=NEGATE_SOURCE), objects=objects))
    assert allowed.policy.rules == ()
    assert why in left_out(allowed)
    refusing = rule("stop", "deny", source=source)
    if "fqdn" in objects:  # as it is, a name can be matched: with its last addresses, as where it comes from
        assert load(config(refusing, rule("web"), objects=objects)).policy.rules[0].source_names
        return
    with pytest.raises(ConfigError, match="would allow what it refuses"):
        load(config(refusing, rule("web"), objects=objects))


def test_an_external_list_and_an_address_of_one_name_are_not_taken_for_each_other() -> None:
    objects = address("partner", "ip-netmask", "10.0.0.0/8") + (
        '<external-list><entry name="partner"><type><ip><url>https://a.example/</url></ip></type></entry></external-list>'
    )
    assert "a region or an external list has that name too" in left_out(
        load(config(rule(source="partner"), objects=objects))
    )


@pytest.mark.parametrize(
    ("value", "opened"),
    [
        ("10.1.2.3/0.0.0.0", "0.0.0.0/0 where one host was meant"),
        ("10.1.2.0/0.0.0.255", "a mask of the host"),
        ("10.1.2.0/255.255.255.0", "a mask in dots"),
        ("10.1.2.3/", "no length"),
        ("10.1.2.3/33", "too long"),
        ("10.1.2.3-", "half a range"),
        ("10.1.2.9-10.1.2.3", "a range upside down"),
        ("2001:db8::1-10.0.0.1", "a range over two families"),
        ("10.1.2", "three octets"),
        ("010.1.2.3", "an octet that some read as octal"),
        ("${subnet}", "a template's variable"),
        ("None", "the default of a template"),
    ],
    ids=lambda text: text,
)
def test_a_value_that_could_be_read_in_two_ways_is_not_read(value: str, opened: str) -> None:
    for kind in ("ip-netmask", "ip-range"):
        found = load(config(rule(source="h"), objects=address("h", kind, value)))
        assert found.policy.rules == (), opened
    assert load(config(rule(source=value))).policy.rules == (), opened


def test_wildcards_match_by_bits() -> None:
    found = load(
        config(
            rule(source="printers", destination="10.9.9.9"),
            objects=address("printers", "ip-wildcard", "10.20.1.0/0.0.248.255"),
        )
    )
    for source, there in (
        ("10.20.1.7", True),
        ("10.20.9.7", True),
        ("10.20.249.7", True),
        ("10.20.2.7", False),
        ("10.21.1.7", False),
    ):
        assert passes(found, source, "10.9.9.9") is there, source


def test_one_family_is_not_the_other() -> None:
    objects = address("six", "ip-netmask", "2001:db8:1::/48") + address("any4", "ip-netmask", "0.0.0.0/0")
    found = load(
        config(rule("a", source="six", destination="six"), rule("b", source="any4"), objects=objects)
    )
    assert passes(found, "2001:db8:1::5", "2001:db8:1:ffff::1")
    assert not passes(found, "2001:db8:2::5", "2001:db8:1::1")
    assert passes(found, "192.0.2.1", "10.0.0.1")
    assert not passes(found, "2001:db8:2::5", "2001:db8:2::1"), "all of IPv4 is none of IPv6"


def test_a_shared_group_means_shared_addresses_whatever_the_virtual_system_calls_so() -> None:
    found = load(
        config(
            rule("group", source="servers", destination="192.0.2.1"),
            rule("own", source="192.0.2.2", destination="web"),
            objects=address("web", "ip-netmask", "10.0.0.0/8"),
            shared=address("web", "ip-netmask", "10.1.1.1") + group("servers", "web"),
        )
    )
    assert passes(found, "10.1.1.1", "192.0.2.1")
    assert not passes(found, "10.2.2.2", "192.0.2.1"), "the virtual system's web is a network"
    assert passes(found, "192.0.2.2", "10.2.2.2"), "a rule means the virtual system's"
    text = config(
        rule(source="servers"),
        objects=address("web", "ip-netmask", "10.0.0.0/8"),
        shared=group("servers", "web"),
    )
    assert "its member web is the virtual system's own" in left_out(load(text))


def test_a_shared_group_of_services_means_shared_services() -> None:
    found = load(
        config(
            rule(service="admin"),
            objects=service("ssh", "tcp", "1-65535"),
            shared=service("ssh", "tcp", "22")
            + '<service-group><entry name="admin"><members><member>ssh</member></members></entry></service-group>',
        )
    )
    assert passes(found, "10.0.0.1", "10.0.0.2", 22)
    assert not passes(found, "10.0.0.1", "10.0.0.2", 23)


@pytest.mark.parametrize(
    "objects",
    [
        '<address><entry name="h"><ip-netmask>10.0.0.1</ip-netmask><ip-netmask>10.0.0.2</ip-netmask></entry></address>',
        '<address><entry name="h"><ip-netmask>10.0.0.1</ip-netmask><fqdn>a.example.com</fqdn></entry></address>',
        '<address-group><entry name="h"><static><member>10.0.0.1</member></static><dynamic><filter>x</filter></dynamic>'
        "</entry></address-group>",
        '<address-group><entry name="h"><static><member>10.0.0.1</member><Member>10.0.0.2</Member></static></entry>'
        "</address-group>",
        address("h", "ip-netmask", "10.0.0.1") + address("h", "ip-netmask", "0.0.0.0/0"),
    ],
)
def test_an_object_that_says_two_things_says_neither(objects: str) -> None:
    """Half of what a refusing rule names would let the other half pass."""
    assert load(config(rule(source="h"), objects=objects)).policy.rules == ()
    with pytest.raises(ConfigError, match="would allow what it refuses"):
        load(config(rule("stop", "drop", source="h"), rule("web"), objects=objects))


# Services and applications ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "protocol",
    [
        "<tcp><port>80</port><port>443</port></tcp>",
        "<tcp><port>80</port></tcp><udp><port>53</port></udp>",
        "<tcp/>",
        "<tcp><port/></tcp>",
        "<tcp><port>80-</port></tcp>",
        "<tcp><port>0x50</port></tcp>",
        "<tcp><port>80</port><source-port>1-2</source-port><source-port>3</source-port></tcp>",
        "<sctp><port>80</port></sctp>",
        "<icmp/>",
    ],
)
def test_a_service_without_its_ports_is_not_every_port(protocol: str) -> None:
    objects = f'<service><entry name="s"><protocol>{protocol}</protocol></entry></service>'
    assert load(config(rule(service="s"), objects=objects)).policy.rules == ()
    with pytest.raises(ConfigError, match="would allow what it refuses"):
        load(config(rule("stop", "deny", service="s"), rule("web"), objects=objects))


@pytest.mark.parametrize("application", ["any", "ssl", "web-browsing", "unknown-tcp", "my-app"])
@pytest.mark.parametrize("where", ["application-default", "any"])
def test_application_default_is_not_any(application: str, where: str) -> None:
    if (application, where) == ("any", "any"):
        return
    text = config(rule(application=application, service=where))
    assert load(text).policy.rules == (), "nobody said that ports will do"
    accepted = load(text, accept_ports_for_applications=True)
    assert not passes(accepted, "10.0.0.1", "10.0.0.2", 31_337)


def test_application_default_beside_a_service_is_neither() -> None:
    text = config(rule(application="ssl", service=("application-default", "service-https")))
    assert load(text, accept_ports_for_applications=True).policy.rules == ()


def test_a_shared_group_of_applications_that_the_virtual_system_redefines_stays_out() -> None:
    custom = (
        '<application><entry name="ledger"><default><port><member>tcp/1-65535</member></port></default></entry>'
        "</application>"
    )
    shared = (
        '<application-group><entry name="office"><members><member>ledger</member></members></entry>'
        "</application-group>"
    )
    text = config(rule(application="office"), objects=custom, shared=shared)
    found = load(text, accept_ports_for_applications=True)
    assert "the virtual system has another one of a name in it" in left_out(found)


# What else a rule asks for ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (members("source-user", "cn=vpn-users,ou=groups,dc=example,dc=com"), "users"),
        (members("source-user", "pre-logon"), "users"),
        (members("source-hip", "disk-encrypted") + members("destination-hip", "any"), "device checks"),
        (members("category", "social-networking", "custom-urls"), "URL categories"),
        ("<schedule>office-hours</schedule>", "a schedule"),
        (members("source-device", "ip-camera"), "devices"),
        (members("saas-tenant-list", "tenant-1"), "saas-tenant-list"),
        ("<nw-slice><member>01</member></nw-slice>", "nw-slice"),
        ("<target><negate>yes</negate><devices><entry name='0123'/></devices></target>", "target devices"),
    ],
)
def test_who_when_and_what_else_is_never_dropped_from_a_rule(more: str, why: str) -> None:
    usual = members("source-user", "any") if "source-user" not in more else ""
    text = rule(
        "vpn", source="10.0.0.0/8", more=usual + PROFILES + "<log-setting>default</log-setting>" + more
    )
    found = load(config(text))
    assert found.policy.rules == ()
    assert why in left_out(found)
    assert "security profiles" not in left_out(found), "those change nothing about who matches"


def test_profiles_are_not_what_a_rule_asks_for_and_are_said() -> None:
    found = load(config(rule("inspected", more=PROFILES)))
    assert [one.name for one in found.policy.rules] == ["inspected"]
    assert any("content is not inspected" in warning for warning in found.policy.warnings)


def test_any_beside_others_is_not_taken_for_any() -> None:
    for tag in ("source", "destination", "service", "application"):
        found = load(config(rule(**{tag: ("any", "10.0.0.1")})))  # type: ignore[arg-type]
        assert f"its {tag} names any and others" in left_out(found)
    assert "its from names any and others" in left_out(load(config(rule(from_=("data", "any")))))


@pytest.mark.parametrize(
    "source",
    [
        "<source>any</source>",
        "<source><member>10.0.0.1</member>any</source>",
        "<source><member>10.0.0.1</member><list>any</list></source>",
        "<source><member><member>any</member></member></source>",
        "<source/>",
    ],
)
def test_a_list_that_is_none_is_not_any(source: str) -> None:
    assert load(config(rule(source=(), more=source))).policy.rules == ()


def test_a_disabled_rule_is_disabled() -> None:
    found = load(config(rule("old", more="<disabled>yes</disabled>"), rule("new", source="10.0.0.1")))
    assert [(one.name, one.disabled) for one in found.policy.rules] == [("old", True), ("new", False)]
    assert not passes(found, "10.0.0.2", "10.0.0.3")
    for word in ("Yes", "true", "1"):
        assert load(config(rule(more=f"<disabled>{word}</disabled>"))).policy.rules == ()


@pytest.mark.parametrize(
    "twice",
    [
        "<disabled>yes</disabled><disabled>no</disabled>",
        "<negate-source>no</negate-source><negate-source>yes</negate-source>",
    ],
)
def test_a_refusing_rule_that_says_two_things_stops_the_file(twice: str) -> None:
    with pytest.raises(ConfigError, match="would allow what it refuses"):
        load(config(rule("stop", "deny", source="10.0.0.1", more=twice), rule("web")))
    both = rule("stop").replace("</action>", "</action><action>deny</action>")
    with pytest.raises(ConfigError, match="would allow what it refuses"):
        load(config(both, rule("web")))


# Zones and places of rules ----------------------------------------------------------------------------------


def test_the_three_types_of_rule() -> None:
    def zoned(rule_type: str, begin: str | tuple[str, ...], end: str | tuple[str, ...]) -> Panos:
        text = rule(from_=begin, to=end, more=f"<rule-type>{rule_type}</rule-type>")
        return load(config(text, zones=TWO_ZONES), endpoints=ENDPOINTS)

    pairs = [(a, b) for a in ("trust", "untrust") for b in ("trust", "untrust")]

    def opened(found: Panos) -> list[tuple[str, str]]:
        return [pair for pair in pairs if passes(found, "10.0.0.1", "10.0.0.2", zones=pair)]

    assert opened(zoned("universal", "trust", "untrust")) == [("trust", "untrust")]
    assert opened(zoned("intrazone", "trust", "any")) == [("trust", "trust")]
    assert opened(zoned("intrazone", "any", ())) == [("trust", "trust"), ("untrust", "untrust")]
    assert opened(zoned("interzone", "any", "any")) == [("trust", "untrust"), ("untrust", "trust")]
    assert opened(zoned("interzone", "trust", ("trust", "untrust"))) == [("trust", "untrust")]
    assert "ends elsewhere than it begins" in left_out(zoned("intrazone", "trust", "untrust"))


def test_zones_that_are_not_one_zone_stop_the_file() -> None:
    one = '<entry name="{}"><network><layer3><member>{}</member></layer3></network></entry>'
    for zones, expected in (
        (
            one.format("trust", "ethernet1/1") + one.format("untrust", "ethernet1/1"),
            "an interface in one zone",
        ),
        (one.format("trust", "ethernet1/1") + one.format("trust", "ethernet1/2"), "each zone once"),
    ):
        with pytest.raises(ConfigError, match=expected):
            load(config(rule(), zones=zones))


PUSHED = "<security><rules><entry name='block'><action>deny</action></entry></rules></security>"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("<shared>", f"<shared><pre-rulebase>{PUSHED}</pre-rulebase>"),
        ("<shared>", f"<shared><post-rulebase>{PUSHED}</post-rulebase>"),
        ('<entry name="vsys1">', f'<entry name="vsys1"><pre-rulebase>{PUSHED}</pre-rulebase>'),
        ("<shared>", f"<panorama><pre-rulebase>{PUSHED}</pre-rulebase></panorama><shared>"),
        (
            "<vsys>",
            f"<device-group><entry name='dg'><pre-rulebase>{PUSHED}</pre-rulebase></entry></device-group><vsys>",
        ),
    ],
)
def test_rules_of_a_place_that_comes_first_are_not_passed_over(old: str, new: str) -> None:
    with pytest.raises(ConfigError, match="what Panorama pushes comes before its own rules"):
        load(config(rule()).replace(old, new, 1))


def test_what_stands_among_the_rules_and_is_none_stops_the_file() -> None:
    with pytest.raises(ConfigError, match="nothing but rules") as caught:
        load(config(rule("stop", "deny").replace("entry", "Entry"), rule("web")))
    assert (caught.value.line, caught.value.value) == (2, "Entry")


def test_a_second_device_or_a_virtual_system_twice_stops_the_file() -> None:
    text = config(rule())
    device = text[text.index('<entry name="localhost') : text.index("</devices>")]
    with pytest.raises(ConfigError, match="expected one device"):
        load(text.replace(device, device + device))
    system = text[text.index('<entry name="vsys1">') : text.index("</vsys>")]
    with pytest.raises(ConfigError, match="each virtual system once"):
        load(text.replace(system, system + system))


@pytest.mark.parametrize(
    ("rulebase", "more"),
    [
        ("pbf", "<action><discard/></action>"),
        ("dos", "<action><deny/></action>"),
        ("authentication", "<authentication-enforcement>default-web-form</authentication-enforcement>"),
        ("authentication", ""),
    ],
)
def test_what_other_rulebases_stop_is_not_opened(rulebase: str, more: str) -> None:
    def with_rule(text: str) -> str:
        return config(
            rule("web"), rulebase=f"<{rulebase}><rules><entry name='stop'>{text}</entry></rules></{rulebase}>"
        )

    with pytest.raises(ConfigError, match="stops what they allow") as caught:
        load(with_rule(more))
    assert (caught.value.key, caught.value.value) == ("rule", "stop")
    assert load(with_rule(f"{more}<disabled>yes</disabled>")).policy.rules
    found = load(with_rule(more), leave_out=["stop"])
    assert any("rule stop is left out, as was asked for" in warning for warning in found.policy.warnings)


@pytest.mark.parametrize(
    ("rulebase", "more"),
    [
        ("pbf", "<action><forward/></action>"),
        ("dos", "<action><protect/></action>"),
        ("nat", ""),
        ("sdwan", ""),
        (
            "authentication",
            "<authentication-enforcement>default-no-captive-portal</authentication-enforcement>",
        ),
    ],
)
def test_what_stops_nothing_is_said_and_not_used(rulebase: str, more: str) -> None:
    text = f"<{rulebase}><rules><entry name='x'>{more}</entry></rules></{rulebase}>"
    found = load(config(rule("web"), rulebase=text))
    assert f"bootstrap.xml: 1 {rulebase} rule is not used" in found.policy.warnings


def test_an_open_default_needs_every_refusing_rule() -> None:
    opened = DENY.replace("<action>deny", "<action>allow", 1)
    with pytest.raises(ConfigError, match="without it a default rule would allow what it refuses"):
        load(config(rule("block apps", "reset-both", application="bittorrent"), defaults=opened))
