"""The policy in a PAN-OS configuration, as in the ``bootstrap.xml`` of a package that boots the vendor's firewall.

The file becomes a document in the form of our own policy file, and that one is read like any other
(``everwall.policy.rules``). What the document cannot say is listed; what would open more than was written is
not loaded. ``docs/policy.md`` tells the rules of the translation.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from everwall.config import ConfigError, Node
from everwall.policy.document import node_of, yaml_text
from everwall.policy.match import ZONE_DATA
from everwall.policy.model import Policy
from everwall.policy.panos_objects import Objects, Table
from everwall.policy.panos_rules import RuleReader, default_rules
from everwall.policy.rules import read_document
from everwall.policy.settings import REJECT_NON_SYN, SETTING_KEYS
from everwall.policy.xml_tree import Element, read_xml

_ZONE_KINDS = ("layer3", "layer2", "virtual-wire", "tap", "tunnel", "external")
_DATA_INTERFACE = "ethernet1/1"
_ELSEWHERE = (
    ("panorama",),
    ("devices", "entry", "device-group"),
    ("devices", "entry", "template"),
    *(
        (*place, name)
        for place in (("shared",), ("devices", "entry", "vsys", "entry"))
        for name in ("pre-rulebase", "post-rulebase")
    ),
    ("shared", "rulebase"),
)
"""Where rules stand that come before or after the firewall's own."""
_NOBODY = "default-no-captive-portal"
"""The vendor's authentication enforcement that asks nobody."""


@dataclass(frozen=True)
class Panos:
    """Everything that is taken from a configuration."""

    policy: Policy
    """Its warnings name each rule that was not loaded, and whatever else is not used."""
    document: Node
    """The same policy in the form of our own file."""
    interfaces: Mapping[str, str]
    """Interface, as ``ethernet1/1.10``, to its zone."""
    left_out: tuple[str, ...]
    """One line for each rule that was not loaded."""

    def yaml(self) -> str:
        """Our policy file with the same policy."""
        heading = f"Made from {Path(self.policy.file).name}. Rules that are not loaded: {len(self.left_out)}"
        return yaml_text(self.document, "\n".join([heading, *(f"  {line}" for line in self.left_out)]))


def read_panos(
    path: str | Path, text: str | None = None, accept_ports_for_applications: bool = False
) -> Policy:
    """The policy in a PAN-OS configuration; as ``load_panos``."""
    return load_panos(path, text, accept_ports_for_applications).policy


def load_panos(
    path: str | Path,
    text: str | None = None,
    accept_ports_for_applications: bool = False,
    leave_out: Collection[str] = (),
    endpoints: Mapping[str, Sequence[str]] | None = None,
) -> Panos:
    """What a PAN-OS configuration says about policy; ``text`` replaces reading the file. Raises ``ConfigError``.

    ``leave_out`` names rules that the operator does without, whatever they would refuse. ``endpoints`` maps an
    interface to the ids of the load balancer's endpoints that are associated with it; without, everything is in
    the zone of the data interface.
    """
    root = read_xml(path, text)
    return _Translator(str(path), root, accept_ports_for_applications, leave_out, endpoints or {}).translate()


class _Translator:
    """Turns one configuration into a document and what is to be said about it."""

    def __init__(
        self,
        file: str,
        root: Element,
        accept_ports: bool,
        leave_out: Collection[str],
        endpoints: Mapping[str, Sequence[str]],
    ) -> None:
        self.file = file
        self.root = root
        self.accept_ports = accept_ports
        self.leave_out = frozenset(leave_out)
        self.endpoints = endpoints
        self.notes: list[str] = []
        self.interfaces: dict[str, str] = {}

    def translate(self) -> Panos:
        device, system = self._places()
        zones = self._zones(system)
        objects = Objects(self.file, [system, *self.root.all("shared")])
        written = self._rules(system, "security")
        defaults = self._rules(system, "default-security-rules")
        others = self._refusals(system) - {entry.name for entry in written}
        reader = RuleReader(self.file, objects, zones.names, self.accept_ports, self.leave_out - others)
        rules = reader.read(written, defaults)
        document: dict[str, Any] = {
            "zones": dict(zones.nodes),
            "addresses": dict(objects.addresses.nodes),
            "services": dict(objects.services.nodes),
            "rules": rules.nodes,
            "default-rules": default_rules(self.file, defaults, self.notes),
            "sessions": self._session(device),
        }
        self._unused(system)
        self.notes += [f"{self.file}: {note}" for note in objects.notes]
        node = node_of(self.file, self.root.line, "", {name: part for name, part in document.items() if part})
        policy = read_document(node)
        unused = [f"{self.file}: {reason}" for reason in self._unmatchable(objects)]
        warnings = (*rules.left_out, *self.notes, *rules.notes, *unused, *policy.warnings)
        return Panos(replace(policy, warnings=warnings), node, self.interfaces, tuple(rules.left_out))

    def _places(self) -> tuple[Element, Element]:
        """The device and its virtual system."""
        if self.root.tag != "config":
            raise ConfigError(
                self.file, "a configuration of PAN-OS (<config>)", line=self.root.line, value=self.root.tag
            )
        for path in _ELSEWHERE:
            for found in self.root.all(*path):
                if found.children:
                    raise ConfigError(
                        self.file,
                        "the whole configuration of one firewall: what Panorama pushes comes before its own rules",
                        line=found.line,
                        key="/".join(path),
                    )
        devices = list(self.root.entries("devices"))
        device = devices[0] if devices else None
        systems = list(device.entries("vsys")) if device is not None else []
        for entries in (devices, systems):
            known: set[str] = set()
            for entry in entries:
                if entry.name in known or (entries is devices and known):
                    what = "one device" if entries is devices else "each virtual system once"
                    raise ConfigError(self.file, what, line=entry.line, value=entry.name)
                known.add(entry.name)
        if device is None or not systems:
            raise ConfigError(self.file, "devices/entry/vsys/entry with the rules", line=self.root.line)
        system = next((entry for entry in systems if entry.name == "vsys1"), systems[0])
        for other in systems:
            if other is not system:
                self.notes.append(f"{self.file}:{other.line}: virtual system {other.name} is not used")
        return device, system

    # Zones ------------------------------------------------------------------------------------------------

    def _zones(self, system: Element) -> Table:
        """The zones, the interfaces in them, and which zone the endpoints are in."""
        elements: dict[str, Element] = {}
        for entry in system.entries("zone"):
            if elements.setdefault(entry.name, entry) is not entry:
                raise ConfigError(self.file, "each zone once", line=entry.line, key="zone", value=entry.name)
        table = Table("zone", lambda text: False, elements)
        lines: dict[str, int] = {}
        for entry in elements.values():
            ours = table.name(entry.name, self.notes)
            lines[ours] = entry.line
            for kind in _ZONE_KINDS:
                for member in entry.members("network", kind):
                    if self.interfaces.setdefault(member.text, ours) != ours:
                        raise ConfigError(
                            self.file,
                            "an interface in one zone",
                            line=member.line,
                            key="zone",
                            value=member.text,
                        )
            if entry.value("network", "zone-protection-profile"):
                self.notes.append(f"{self.file}:{entry.line}: zone {entry.name}: zone protection is not used")
        associated: dict[str, list[str]] = {}
        for interface, ids in self.endpoints.items():
            if interface not in self.interfaces:
                self.notes.append(
                    f"{self.file}: {interface} is in no zone: packets of {', '.join(ids)} are dropped"
                )
                continue
            associated.setdefault(self.interfaces[interface], []).extend(ids)
        if self.endpoints and not associated:
            # Else everything would be in one zone, which nobody wrote.
            first, known = next(iter(self.endpoints)), ", ".join(self.interfaces) or "none"
            raise ConfigError(self.file, f"an interface that is in a zone ({known})", key="zone", value=first)
        whole = "" if associated else self._whole()
        for ours, line in lines.items():
            zone: dict[str, Any] = {}
            if ours in associated:
                zone["endpoints"] = list(dict.fromkeys(associated[ours]))
            elif ours == whole:
                zone["endpoints"] = "any"
            table.nodes[ours] = node_of(self.file, line, f"zone {ours}", zone)
        return table

    def _whole(self) -> str:
        """The zone that everything is in as long as no endpoint is associated: that of the data interface."""
        zones = list(dict.fromkeys(self.interfaces.values()))
        whole = self.interfaces.get(_DATA_INTERFACE) or (zones[0] if len(zones) == 1 else "")
        if not whole:
            self.notes.append(
                f"{self.file}: {_DATA_INTERFACE} is in no zone: everything is in zone {ZONE_DATA}, "
                "until an endpoint is associated with an interface"
            )
        elif len(zones) > 1:
            self.notes.append(
                f"{self.file}: everything is in zone {whole}, that of {_DATA_INTERFACE}, "
                "until an endpoint is associated with another interface"
            )
        return whole

    # Sessions -----------------------------------------------------------------------------------------------

    def _session(self, device: Element) -> dict[str, Node]:
        """The settings that we know, by the same keys."""
        found: dict[str, Node] = {}
        session = device.child("deviceconfig", "setting", "session")
        for child in session.children if session is not None else ():
            if child.tag not in SETTING_KEYS:
                self.notes.append(f"{self.file}:{child.line}: session setting {child.tag} is not used")
                continue
            if child.tag == REJECT_NON_SYN and child.text not in ("yes", "no"):
                raise ConfigError(self.file, "yes or no", line=child.line, key=child.tag, value=child.text)
            found[child.tag] = node_of(self.file, child.line, child.tag, child.text)
        return found

    # What is not used -----------------------------------------------------------------------------------------

    def _rules(self, system: Element, rulebase: str) -> list[Element]:
        """The rules of a rulebase in order; nothing else may stand among them."""
        found = [child for rules in system.all("rulebase", rulebase, "rules") for child in rules.children]
        for child in found:
            if child.tag != "entry":
                raise ConfigError(self.file, "nothing but rules (<entry>)", line=child.line, value=child.tag)
        return found

    def _refusals(self, system: Element) -> set[str]:
        """The names of rules beside the security rules that stop what those allow, all of them to be left out.

        Raises ConfigError for one that is not.
        """
        found = [
            *(entry for entry in self._rules(system, "pbf") if entry.child("action", "discard") is not None),
            *(entry for entry in self._rules(system, "dos") if entry.child("action", "deny") is not None),
            *(
                entry
                for entry in self._rules(system, "authentication")
                if not entry.says("authentication-enforcement", _NOBODY)
            ),
        ]
        active = [entry for entry in found if not entry.says("disabled", "yes")]
        for entry in active:
            if entry.name not in self.leave_out:
                raise ConfigError(
                    self.file,
                    "no rule beside the security rules that stops what they allow (discard of policy-based forwarding, "
                    "deny of DoS protection, authentication): it is not done here. Disable it, or name it as one to "
                    "leave out",
                    line=entry.line,
                    key="rule",
                    value=entry.name,
                )
            self.notes.append(f"{self.file}:{entry.line}: rule {entry.name} is left out, as was asked for")
        return {entry.name for entry in active}

    def _unused(self, system: Element) -> None:
        counts: dict[str, int] = {}
        for rulebase in system.all("rulebase"):
            for child in rulebase.children:
                if child.tag not in ("security", "default-security-rules"):
                    counts[child.tag] = counts.get(child.tag, 0) + sum(1 for _ in child.entries("rules"))
        for name, count in counts.items():
            if count:
                self.notes.append(
                    f"{self.file}: {count} {name} rule{'s are' if count > 1 else ' is'} not used"
                )

    def _unmatchable(self, objects: Objects) -> list[str]:
        reasons: list[str] = []
        for table in (objects.addresses, objects.services):
            reasons += [f"{table.kind} {reason}" for reason in table.reasons.values()]
        return reasons
