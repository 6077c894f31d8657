"""Configurations of PAN-OS for tests, small enough to be read beside what is asserted."""

from __future__ import annotations

ZONE = '<entry name="data"><network><layer3><member>ethernet1/1</member></layer3></network></entry>'
DENY = "".join(
    f'<entry name="{name}"><action>deny</action></entry>'
    for name in ("intrazone-default", "interzone-default")
)


def members(tag: str, *names: str) -> str:
    return f"<{tag}>{''.join(f'<member>{name}</member>' for name in names)}</{tag}>"


def rule(name: str = "a", action: str = "allow", more: str = "", **fields: str | tuple[str, ...]) -> str:
    """One security rule; fields that are not given are any, one that is () is not there."""
    parts = []
    for tag in ("from", "to", "source", "destination", "application", "service"):
        values = fields.get(tag.replace("from", "from_"), "any")
        if values:
            parts.append(members(tag, *((values,) if isinstance(values, str) else values)))
    return f'<entry name="{name}">{"".join(parts)}<action>{action}</action>{more}</entry>'


def config(
    *rules: str,
    objects: str = "",
    shared: str = "",
    zones: str = ZONE,
    defaults: str = DENY,
    setting: str = "",
    rulebase: str = "",
    top: str = "",
) -> str:
    """A whole configuration; every rule begins a line, the first in line 2."""
    security = "".join(f"\n{one}" for one in rules)
    return (
        f'<config version="11.1.0">{top}<shared>{shared}</shared><devices><entry name="localhost.localdomain">'
        f'<deviceconfig><setting>{setting}</setting></deviceconfig><vsys><entry name="vsys1"><zone>{zones}</zone>'
        f"{objects}<rulebase><security><rules>{security}</rules></security>"
        f"<default-security-rules><rules>{defaults}</rules></default-security-rules>{rulebase}</rulebase>"
        "</entry></vsys></entry></devices></config>"
    )


def address(name: str, kind: str, value: str) -> str:
    return f'<address><entry name="{name}"><{kind}>{value}</{kind}></entry></address>'


def service(name: str, protocol: str, port: str, more: str = "") -> str:
    return (
        f'<service><entry name="{name}"><protocol><{protocol}><port>{port}</port>{more}</{protocol}></protocol>'
        "</entry></service>"
    )


def group(name: str, *names: str) -> str:
    return f'<address-group><entry name="{name}">{members("static", *names)}</entry></address-group>'
