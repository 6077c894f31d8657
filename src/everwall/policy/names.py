"""Host names in a policy: which are to be asked for and when, and the policy with what was answered.

Without clock and resolver: times come in, names go out, answers come back. A name that was never resolved matches
nothing; one that was keeps its last answer for as long as asking again fails.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from everwall.limits import NAME_ADDRESSES_MAX, NAME_REFRESH_NS, NAME_RETRY_NS
from everwall.policy.model import AddressRange, Policy

Answers = Mapping[str, tuple[AddressRange, ...]]


def with_answers(policy: Policy, answers: Answers) -> Policy:
    """The policy in which host names stand for their addresses; names without an answer for none."""

    def more(names: tuple[str, ...]) -> tuple[AddressRange, ...]:
        return tuple(entry for name in names for entry in answers.get(name, ()))

    rules = []
    for rule in policy.rules:
        if rule.source_names and rule.source is not None:
            rule = replace(rule, source=tuple(dict.fromkeys(rule.source + more(rule.source_names))))
        if rule.destination_names and rule.destination is not None:
            destination = tuple(dict.fromkeys(rule.destination + more(rule.destination_names)))
            rule = replace(rule, destination=destination)
        rules.append(rule)
    return replace(policy, rules=tuple(rules))


@dataclass
class _Name:
    due_ns: int | None
    """When to ask; None while somebody asks."""
    addresses: tuple[AddressRange, ...] = ()
    resolved: bool = False
    asked: bool = False
    """Whether there was an answer, or the news that there is none."""


class NameBook:
    """What is known about the host names of one policy."""

    def __init__(self, policy: Policy, now_ns: int, before: NameBook | None = None) -> None:
        """``policy`` as it was read, without answers; ``before``: what another policy's book knew already."""
        self._policy = policy
        self._names: dict[str, _Name] = {}
        for name in policy.host_names:
            known = before._names.get(name) if before is not None else None
            self._names[name] = replace(known, due_ns=now_ns) if known is not None else _Name(now_ns)

    def due(self, now_ns: int, at_most: int) -> list[str]:
        """The names to ask for now, those that have waited longest first; they are not due again before an answer."""
        waiting = sorted(
            (entry.due_ns, name)
            for name, entry in self._names.items()
            if entry.due_ns is not None and entry.due_ns <= now_ns
        )
        found = [name for _, name in waiting[:at_most]]
        for name in found:
            self._names[name].due_ns = None
        return found

    def answered(self, name: str, addresses: Iterable[str], now_ns: int) -> bool:
        """The addresses of a name; whether they are others than before. None at all is a failure."""
        found = sorted({_range(text) for text in addresses})[:NAME_ADDRESSES_MAX]
        if not found:
            self.failed(name, now_ns)
            return False
        entry = self._names[name]
        changed = entry.addresses != tuple(found)
        entry.addresses, entry.due_ns = tuple(found), now_ns + NAME_REFRESH_NS
        entry.resolved = entry.asked = True
        return changed

    def failed(self, name: str, now_ns: int) -> None:
        """Nobody could say: the last answer stays."""
        entry = self._names[name]
        entry.due_ns, entry.asked = now_ns + NAME_RETRY_NS, True

    def unresolved(self) -> list[str]:
        """Names that have never been answered: what they stand for matches nothing."""
        return [name for name, entry in self._names.items() if not entry.resolved]

    def waiting(self) -> bool:
        """Whether there are names of which nothing was heard yet, neither good nor bad."""
        return any(not entry.asked for entry in self._names.values())

    def again(self, now_ns: int) -> NameBook:
        """The same once more, with every name due: nobody waits for the answers to earlier questions."""
        return NameBook(self._policy, now_ns, self)

    def __len__(self) -> int:
        return len(self._names)

    def policy(self) -> Policy:
        """The policy with everything that is known."""
        return with_answers(self._policy, {name: entry.addresses for name, entry in self._names.items()})


def _range(text: str) -> AddressRange:
    """One address; a zone index, as of link-local addresses, is none of its bits."""
    address = ipaddress.ip_address(text.partition("%")[0])
    return AddressRange(address.version, int(address), int(address))
