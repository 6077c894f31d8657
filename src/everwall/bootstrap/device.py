"""What a ``bootstrap.xml`` says of the machine itself: its ``deviceconfig/system``.

These are the same things as some keys of init-cfg.txt, which go before them. The policy in the file is read elsewhere.
"""

from __future__ import annotations

from pathlib import Path

from everwall.bootstrap.entries import Entry, Kind, Layer
from everwall.bootstrap.faults import PackageError
from everwall.config import ConfigError
from everwall.policy.xml_tree import Element, read_xml

_SYSTEM = ("devices", "entry", "deviceconfig", "system")
_KEYS = {
    "hostname": ("hostname",),
    "ip-address": ("ip-address",),
    "netmask": ("netmask",),
    "default-gateway": ("default-gateway",),
    "ipv6-address": ("ipv6-address",),
    "ipv6-default-gateway": ("ipv6-default-gateway",),
    "dns-primary": ("dns-setting", "servers", "primary"),
    "dns-secondary": ("dns-setting", "servers", "secondary"),
}
_TYPES = ("static", "dhcp-client")


def read_device(path: Path) -> Layer:
    """The layer of a bootstrap.xml. Raises PackageError: no XML, or XML that would unfold or read other files."""
    layer = Layer(str(path), Kind.XML)

    def add(key: str, value: str, found: Element) -> None:
        layer.entries[key] = Entry(key, value, found.line, layer.file)

    system = _read(path).child(*_SYSTEM)
    if system is None:
        return layer
    for key, place in _KEYS.items():
        found = system.child(*place)
        if found is not None and found.text:
            add(key, found.text, found)
    for word in _TYPES:
        found = system.child("type", word)
        if found is not None:
            add("type", word, found)
    return layer


def _read(path: Path) -> Element:
    try:
        root = read_xml(path)
    except ConfigError as error:
        raise PackageError(path, error.expected, line=error.line, column=error.column) from None
    if root.tag != "config":
        raise PackageError(
            path, "a configuration whose root is <config>", line=root.line, value=f"<{root.tag}>"
        )
    return root
