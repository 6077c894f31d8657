"""The security rules of a PAN-OS configuration in our form, each loaded as it is written or not at all.

A rule that asks for something that cannot be matched would match more without it. One that allows is left out:
less passes than was written. One that refuses must not be left out where a later rule would allow what it
stopped; then the file as a whole is refused.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from everwall.config import ConfigError, Node
from everwall.limits import POLICY_WARNINGS_SHOWN
from everwall.policy.applications import APPLICATION_DEFAULT, STANDARD_PORTS, by_ports
from everwall.policy.document import node_of
from everwall.policy.match import INTERZONE_DEFAULT, INTRAZONE_DEFAULT
from everwall.policy.model import ACTIONS, RULE_TYPES
from everwall.policy.panos_objects import Names, Objects, Table, shortened, tag_words
from everwall.policy.words import service_words
from everwall.policy.xml_tree import Element

# What a rule says about which sessions it means; anything else that it asks for cannot be matched.
_MATCHED = {"from", "to", "source", "destination", "application", "service"}
_REQUIRED = ("from", "source", "destination", "application", "service")
_DECIDES = {
    "action",
    "rule-type",
    "disabled",
    "negate-source",
    "negate-destination",
    "icmp-unreachable",
    "log-start",
    "log-end",
}
_FOR_PEOPLE = {"description", "tag", "group-tag"}
# What happens to a session that was allowed or refused; leaving it out changes nothing about which ones are.
_NOT_USED = {
    "profile-setting": "has security profiles, which are not used: content is not inspected",
    "log-setting": "forwards its log, which is not used",
    "qos": "has QoS marking, which is not used",
    "option": "has options of inspection, which are not used",
}
_WHO = {
    "source-user": "users",
    "category": "URL categories",
    "source-hip": "device checks (HIP)",
    "destination-hip": "device checks (HIP)",
    "hip-profiles": "device checks (HIP)",
    "source-device": "devices",
    "destination-device": "devices",
    "schedule": "a schedule",
    "target": "target devices of Panorama",
}


@dataclass
class Rules:
    """The rules that were loaded, and what is to be said about all."""

    nodes: list[Node] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """One line for each rule that is not loaded."""
    notes: list[str] = field(default_factory=list)


class RuleReader:
    """Reads the rules of one virtual system in order."""

    def __init__(
        self,
        file: str,
        objects: Objects,
        zones: dict[str, str],
        accept_ports: bool,
        leave_out: Collection[str],
    ) -> None:
        """``zones``: our names for the file's; ``leave_out``: rules that the operator does without."""
        self.file = file
        self.objects = objects
        self.zones = zones
        self.accept_ports = accept_ports
        self.leave_out = frozenset(leave_out)
        self.found = Rules()
        self._stopped: list[tuple[Element, list[str]]] = []
        """Rules that refuse and are not loaded, as long as nothing after them allows."""
        self._names: set[str] = set()
        self._said: dict[str, int] = {}

    def read(self, entries: list[Element], defaults: list[Element]) -> Rules:
        """The rules; raises ``ConfigError`` where leaving one out would open what it closed."""
        known = {entry.name for entry in entries}
        for name in sorted(self.leave_out - known):
            raise ConfigError(self.file, "the name of a security rule that is to be left out", value=name)
        self._fresh = Names("rule", known, lambda text: text in (INTRAZONE_DEFAULT, INTERZONE_DEFAULT))
        for entry in entries:
            self._rule(entry)
        if self._stopped and any(entry.value("action") == "allow" for entry in defaults):
            raise self._opens("a default rule")
        for note, count in self._said.items():
            if count > POLICY_WARNINGS_SHOWN:
                self.found.notes.append(f"{self.file}: {count} rules in all: {note}")
        return self.found

    def _say(self, entry: Element, text: str) -> str:
        return f"{self.file}:{entry.line}: rule {entry.name} {text}"

    def _rule(self, entry: Element) -> None:
        if entry.name in self.leave_out:
            self.found.left_out.append(self._say(entry, "is left out, as was asked for"))
            return
        reasons: list[str] = []
        notes: list[str] = []
        rule = self._read(entry, reasons, notes)
        disabled, allows = entry.says("disabled", "yes"), entry.says("action", "allow")
        if reasons:
            self.found.left_out.append(self._say(entry, f"is not loaded: {'; '.join(reasons)}"))
            # An action that nobody knows may be one that refuses.
            if not disabled and not allows:
                self._stopped.append((entry, reasons))
            return
        if allows and not disabled and self._stopped:
            raise self._opens(f"rule {entry.name} (line {entry.line})")
        for note in notes:
            self._said[note] = self._said.get(note, 0) + 1
            if self._said[note] <= POLICY_WARNINGS_SHOWN:
                self.found.notes.append(self._say(entry, note))
        self.found.nodes.append(node_of(self.file, entry.line, f"rule {entry.name}", rule))

    def _opens(self, who: str) -> ConfigError:
        entry, reasons = self._stopped[0]
        more = len(self._stopped) - 1
        return ConfigError(
            self.file,
            f"a rule that can be matched as it is written ({'; '.join(reasons)}): without it {who} would allow "
            "what it refuses. Change it, disable it, or name it as one to leave out"
            + (f"; the same holds for {more} more" if more else ""),
            line=entry.line,
            key="rule",
            value=entry.name,
        )

    def _read(self, entry: Element, reasons: list[str], notes: list[str]) -> dict[str, Any]:
        """The rule in our form; it holds only where no reason was found against it."""
        rule: dict[str, Any] = {"name": self._name(entry, notes)}
        action = entry.value("action")
        if action not in ACTIONS:
            reasons.append(f"its action is {action or 'missing'}, not one of {', '.join(ACTIONS)}")
        rule_type = entry.value("rule-type") or "universal"
        if rule_type not in RULE_TYPES:
            reasons.append(f"its rule-type {rule_type} is not known")
        elif rule_type != "universal":
            rule["rule-type"] = rule_type
        for tag in _REQUIRED + (("to",) if rule_type != "intrazone" else ()):
            if not entry.members(tag):
                reasons.append(f"it has no {tag}")
        if rule_type == "intrazone" and not self._stays(entry):
            reasons.append("it is intrazone and ends elsewhere than it begins")
        self._unknown(entry, reasons, notes)
        for tag in ("from", "to") if rule_type != "intrazone" else ("from",):
            zones = self._zones(entry, tag, reasons)
            if zones:
                rule[tag] = zones
        for tag in ("source", "destination"):
            words = self._words(self.objects.addresses, entry, tag, reasons)
            rule[tag] = words
            negate = self._flag(entry, f"negate-{tag}", False, reasons)
            if negate and words == "any":
                reasons.append(f"it negates any {tag}")
            if negate:
                rule[f"negate-{tag}"] = True
                self._no_names(tag, words, reasons)
        rule["service"] = self._service(entry, action, reasons, notes)
        rule["action"] = action
        flags = (("icmp-unreachable", False), ("log-start", False), ("log-end", True), ("disabled", False))
        for tag, default in flags:
            value = self._flag(entry, tag, default, reasons)
            if value is not default and (tag != "icmp-unreachable" or action != "allow"):
                rule[tag] = value
        if entry.value("description"):
            rule["description"] = shortened(entry.value("description"))
        if tag_words(entry):
            rule["tags"] = tag_words(entry)
        return rule

    def _name(self, entry: Element, notes: list[str]) -> str:
        name = entry.name
        if name in self._names or not self._fresh.fits(name):
            name = self._fresh.made(name, notes)
        self._names.add(name)
        return name

    def _unknown(self, entry: Element, reasons: list[str], notes: list[str]) -> None:
        """What else the rule asks for, and what it wants done that is not done here."""
        seen: set[str] = set()
        for child in entry.children:
            tag = child.tag
            if tag in seen:
                reasons.append(f"it has {tag} twice")
            seen.add(tag)
            if tag in _MATCHED:
                self._list(child, reasons)
            if tag in _MATCHED or tag in _DECIDES or tag in _FOR_PEOPLE:
                continue
            values = [member.text for member in child.members()] or ([child.text] if child.text else [])
            if tag in _NOT_USED:
                if child.children or child.text not in ("", "no"):
                    notes.append(_NOT_USED[tag])
            elif any(value != "any" for value in values) or (child.children and not values):
                asks = _WHO.get(tag, f"{tag}, which is not known here")
                shown = f" ({', '.join(values[:3])}{', ...' if len(values) > 3 else ''})" if values else ""
                reasons.append(f"it asks for {asks}{shown}")

    def _list(self, child: Element, reasons: list[str]) -> None:
        """Whether a list is one: what is no member of it would be passed over."""
        names = {member.text for member in child.members()}
        if child.text or any(member.tag != "member" or member.children for member in child.children):
            reasons.append(f"its {child.tag} has something in it that is no member")
        if "any" in names and len(names) > 1:
            reasons.append(f"its {child.tag} names any and others")

    def _stays(self, entry: Element) -> bool:
        """Whether an intrazone rule that names an end names its beginning."""
        begin, end = ({member.text for member in entry.members(tag)} for tag in ("from", "to"))
        return end in (set(), {"any"}, begin)

    def _zones(self, entry: Element, tag: str, reasons: list[str]) -> list[str] | None:
        names = [member.text for member in entry.members(tag)]
        if "any" in names:
            return None
        for name in names:
            if name not in self.zones:
                reasons.append(f"zone {name} is not in the file")
                return None
        return [self.zones[name] for name in names]

    def _words(self, table: Table, entry: Element, tag: str, reasons: list[str]) -> str | list[str]:
        names = [member.text for member in entry.members(tag)]
        if "any" in names:
            return "any"
        found = [reason for name in names if (reason := self.objects.why_not(table, name))]
        if found:
            reasons += found
            return "any"
        words = list(dict.fromkeys(self.objects.word(table, name) for name in names))
        return words[0] if len(words) == 1 else words

    def _no_names(self, tag: str, words: str | list[str], reasons: list[str]) -> None:
        """A negated host name would match everything until it is resolved."""
        ahead, seen = [words] if isinstance(words, str) else list(words), set()
        while ahead:
            word = ahead.pop()
            node = self.objects.addresses.nodes.get(word)
            if node is None or word in seen:
                continue
            seen.add(word)
            data = node.data
            members = data.get("members", node) if isinstance(data, dict) else node
            if isinstance(data, dict) and "fqdn" in data:
                reasons.append(
                    f"it negates the {tag} {word}, a host name that has no addresses until it is resolved"
                )
                return
            ahead += [item.text() for item in members.data] if isinstance(members.data, list) else []

    def _service(self, entry: Element, action: str, reasons: list[str], notes: list[str]) -> Any:
        """The rule's services; applications become ports where that was accepted."""
        names = [member.text for member in entry.members("service")]
        default = names == [APPLICATION_DEFAULT]
        members = [member.text for member in entry.members("application")]
        applications = None if "any" in members else self.objects.applications(members)
        words = "any" if default else self._words(self.objects.services, entry, "service", reasons)
        if applications is None and not default:
            return words
        if applications is None and action != "allow":
            notes.append(
                f"refuses every application at its own ports ({APPLICATION_DEFAULT}); here on every port"
            )
            return "any"
        what = "every application at its own ports" if applications is None else ", ".join(applications)
        if not self.accept_ports:
            reasons.append(
                f"it names applications ({what}) and only ports can be matched; "
                "--accept-ports-for-applications takes their standard ports"
            )
            return "any"
        if applications == ():
            reasons.append(f"its application groups ({', '.join(members)}) have no members")
            return "any"
        filters = [name for name in applications or () if name in self.objects.application_reasons]
        if filters:
            reasons.append(f"application {filters[0]}: {self.objects.application_reasons[filters[0]]}")
            return "any"
        # The words of a service are as good as its ports here: by_ports only asks whether there are any.
        service: Any = APPLICATION_DEFAULT if default else (None if words == "any" else ())
        found = by_ports(applications, service, action, {**STANDARD_PORTS, **self.objects.ports})
        if isinstance(found, str):
            reasons.append(f"it names applications ({what}): expected {found}")
            return "any"
        notes.append(
            f"names applications ({what}) and is loaded by ports: "
            f"it {'allows' if action == 'allow' else 'refuses'} whatever uses {found.said}"
        )
        if found.service is None:
            return "any"
        return words if found.service == () else service_words(found.service)

    def _flag(self, entry: Element, tag: str, default: bool, reasons: list[str]) -> bool:
        value = entry.value(tag)
        if value not in ("", "yes", "no"):
            reasons.append(f"its {tag} is {value}, not yes or no")
        return default if not value else value == "yes"


def default_rules(file: str, entries: list[Element], notes: list[str]) -> dict[str, Any]:
    """The default rules in our form; what the file does not decide denies, and is said."""
    found: dict[str, Any] = {}
    by_name: dict[str, Element] = {}
    for entry in entries:
        if entry.name in by_name or len({child.tag for child in entry.children}) < len(entry.children):
            raise ConfigError(
                file, "each default rule, and each of its settings, once", line=entry.line, value=entry.name
            )
        by_name[entry.name] = entry
    for name, vendor in ((INTRAZONE_DEFAULT, "allow"), (INTERZONE_DEFAULT, "deny")):
        written = by_name.get(name)
        action = written.value("action") if written is not None else ""
        if written is not None and action and action not in ACTIONS:
            raise ConfigError(
                file, f"one of {', '.join(ACTIONS)}", line=written.line, key=f"{name}.action", value=action
            )
        rule: dict[str, Any] = {"action": action or "deny"}
        for tag in ("log-start", "log-end"):
            if written is not None and written.value(tag) == "yes":
                rule[tag] = True
        found[name] = rule
        if not action and vendor == "allow":
            notes.append(
                f"{file}: {name} is not overridden: it denies here, where the vendor's allows; "
                "all traffic behind a gateway load balancer stays in its zone and ends there"
            )
    return found
