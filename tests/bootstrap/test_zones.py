"""aws-gwlb-associate-vpce: from an endpoint to a subinterface and so to a zone; what has no zone does not pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from everwall.bootstrap.associations import parse_association
from everwall.bootstrap.faults import ZoneError
from everwall.bootstrap.parse import parse_init_cfg
from everwall.bootstrap.zones import load_policy_of, read_policy_of
from everwall.config import ConfigError
from everwall.policy.model import Policy
from everwall.policy.rules import read_policy

WEB, BACK, THIRD = 0x0A1B2C3D4E5F60718, 0x0B1B2C3D4E5F60719, 0x0C1B2C3D4E5F60720
EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
POLICY = """\
zones:
  web: {interfaces: [ethernet1/1.10, ethernet1/1.11]}
  back: {interfaces: ethernet1/1.20}
rules:
  - {name: all, source: any, destination: any, service: any, action: allow}
"""
RULE = """<entry name="{name}"><from><member>any</member></from><to><member>any</member></to>
<source><member>any</member></source><destination><member>any</member></destination>
<application><member>{application}</member></application><service><member>{service}</member></service>
<action>allow</action></entry>"""
XML = """<config><devices><entry name="localhost.localdomain"><vsys><entry name="vsys1">
<zone><entry name="web"><network><layer3><member>ethernet1/1.10</member></layer3></network></entry></zone>
<rulebase><security><rules>{rules}</rules></security></rulebase></entry></vsys></entry></devices></config>
"""


def boot(folder: Path, *pairs: tuple[int, str], policy: str = POLICY, more: str = "") -> Policy:
    """The policy of a file with these associations."""
    name = "policy.xml" if policy.startswith("<") else "policy.yaml"
    (folder / name).write_text(policy)
    words = ",".join(f"aws-gwlb-associate-vpce:vpce-{endpoint:017x}@{where}" for endpoint, where in pairs)
    text = f"everwall-policy={name}\nplugin-op-commands={words}\n{more}"
    config, _ = parse_init_cfg(text, folder / "init-cfg.txt")
    return read_policy_of(config)


def zones(told: Policy) -> dict[str, tuple[int, ...]]:
    return {zone.name: zone.endpoints for zone in told.zones}


def test_the_words_are_read() -> None:
    words = ",".join(
        f"aws-gwlb-associate-vpce:vpce-{endpoint:017x}@{interface}"
        for endpoint, interface in (
            (WEB, "ethernet1/1.10"),
            (BACK, "ethernet1/1.20"),
            (WEB, "ethernet1/1.10"),
        )
    )
    cfg, warnings = parse_init_cfg(f"plugin-op-commands={words}\n")
    assert [each[:2] for each in cfg.associations] == [(WEB, "ethernet1/1.10"), (BACK, "ethernet1/1.20")]
    assert cfg.associations[0].vpce == "vpce-0a1b2c3d4e5f60718"
    assert warnings == []
    assert parse_association("vpce-a1b2c3d4e5f60718@ethernet1/1") == (WEB, "ethernet1/1")


def test_an_endpoint_is_in_the_zone_of_its_interface(tmp_path: Path) -> None:
    told = boot(tmp_path, (WEB, "ethernet1/1.10"), (THIRD, "ethernet1/1.11"), (BACK, "ethernet1/1.20"))
    assert zones(told) == {"web": (WEB, THIRD), "back": (BACK,)}
    assert not any("has no endpoints" in warning for warning in told.warnings)


def test_an_endpoint_whose_interface_is_in_no_zone_is_dropped_and_named(tmp_path: Path) -> None:
    told = boot(tmp_path, (WEB, "ethernet1/1.10"), (THIRD, "ethernet1/1.30"))
    assert zones(told) == {"web": (WEB,), "back": ()}
    place = tmp_path / "init-cfg.txt"
    assert (
        f"{place}:2: ethernet1/1.30 is in no zone: packets of vpce-{THIRD:017x} are dropped" in told.warnings
    )
    assert any(
        "zone back has no endpoints, and no endpoint is on ethernet1/1.20" in text for text in told.warnings
    )


def test_where_no_endpoint_has_a_zone_nothing_is_opened_by_it(tmp_path: Path) -> None:
    """Otherwise everything would be in the one zone that stands for all, and the rule above would let it pass."""
    with pytest.raises(
        ZoneError, match=r"interfaces of its zones: ethernet1/1\.10, ethernet1/1\.11, ethernet1/1\.20"
    ):
        boot(tmp_path, (WEB, "ethernet1/1.30"))
    with pytest.raises(ZoneError, match="none has any"):
        boot(tmp_path, (WEB, "ethernet1/1.30"), policy="zones: {web: {}}\n")
    with pytest.raises(ConfigError, match=r"an interface that is in a zone \(ethernet1/1\.10\)"):
        boot(tmp_path, (WEB, "ethernet1/1.30"), policy=XML.format(rules=""))


def test_without_a_policy_everything_is_denied_anyway() -> None:
    words = f"plugin-op-commands=aws-gwlb-associate-vpce:vpce-{WEB:017x}@ethernet1/1.10\n"
    told = read_policy_of(parse_init_cfg(words)[0])
    assert told.rules == ()
    assert any("ethernet1/1.10 is in no zone" in warning for warning in told.warnings)


def test_policy_and_words_may_say_the_same_but_not_two_things(tmp_path: Path) -> None:
    both = POLICY.replace(
        "{interfaces: ethernet1/1.20}", f"{{interfaces: ethernet1/1.20, endpoints: {hex(BACK)}}}"
    )
    assert zones(boot(tmp_path, (BACK, "ethernet1/1.20"), policy=both))["back"] == (BACK,)
    with pytest.raises(ConfigError, match="each endpoint once"):
        boot(tmp_path, (BACK, "ethernet1/1.10"), policy=both)
    turned = "zones:\n  a: {endpoints: 7}\n  b: {interfaces: ethernet1/1.1}\n"
    with pytest.raises(ConfigError, match="no interface of vpce-00000000000000007, which is in zone a"):
        boot(tmp_path, (7, "ethernet1/1.1"), policy=turned)


@pytest.mark.parametrize("interface", ["eth0", "ethernet1/1.0", "ethernet1/1.10000", "ethernet1/1.10 "])
def test_interfaces_of_a_zone_are_checked(interface: str) -> None:
    with pytest.raises(ValueError, match="an interface"):
        read_policy("policy.yaml", f"zones: {{web: {{interfaces: '{interface}'}}}}\n")
    with pytest.raises(ValueError, match="each interface once"):
        read_policy(
            "policy.yaml", "zones: {web: {interfaces: ethernet1/1.1}, back: {interfaces: ethernet1/1.1}}\n"
        )


# bootstrap.xml ----------------------------------------------------------------------------------------


def test_the_zones_of_a_bootstrap_xml_have_the_endpoints_of_their_interfaces(tmp_path: Path) -> None:
    rules = RULE.format(name="all", application="any", service="any")
    told = boot(tmp_path, (WEB, "ethernet1/1.10"), (THIRD, "ethernet1/1.30"), policy=XML.format(rules=rules))
    assert zones(told) == {"web": (WEB,)}
    assert [rule.name for rule in told.rules] == ["all"]
    assert any(
        f"ethernet1/1.30 is in no zone: packets of vpce-{THIRD:017x}" in warning for warning in told.warnings
    )


def test_rules_with_applications_are_loaded_by_their_ports_only_where_that_is_accepted(
    tmp_path: Path,
) -> None:
    rules = RULE.format(name="ssh", application="ssh", service="application-default")
    policy = XML.format(rules=rules)
    assert [rule.name for rule in boot(tmp_path, policy=policy).rules] == []
    told = boot(tmp_path, policy=policy, more="everwall-accept-ports-for-applications=yes\n")
    (rule,) = told.rules
    assert rule.service is not None
    assert {(entry.protocol, entry.first_port, entry.last_port) for entry in rule.service} == {(6, 22, 22)}


def test_the_example_of_a_vendor_package_has_its_zones_and_rules() -> None:
    path = EXAMPLES / "vm-series" / "config" / "init-cfg.txt"
    config, _ = parse_init_cfg(f"{path.read_text()}everwall-policy=bootstrap.xml\n", path)
    told = load_policy_of(config).policy
    assert zones(told) == {"data": (), "spoke1": (WEB,), "spoke2": (BACK,)}
    assert [(rule.name, rule.action) for rule in told.rules] == [("web", "allow"), ("session-test", "allow")]
