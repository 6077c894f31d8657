"""From the policy as people write it to the arrays that ``match`` reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from everwall.config import ConfigError
from everwall.modes import ASYNC
from everwall.policy.fields import compile_fields
from everwall.policy.match import (
    ACTION_ALLOW,
    ACTION_DENY,
    ACTION_DROP,
    ANSWER_RESET_CLIENT,
    ANSWER_RESET_SERVER,
    ANSWER_UNREACHABLE,
    ANSWER_UNREACHABLE_TCP,
    INTERZONE_DEFAULT,
    INTRAZONE_DEFAULT,
    RULE_COLUMNS,
    CompiledPolicy,
    rule_id,
    zone_id,
)
from everwall.policy.model import DefaultRule, Policy, Rule
from everwall.policy.rules import read_policy

_ACTIONS = {
    "allow": ACTION_ALLOW,
    "deny": ACTION_DENY,
    "drop": ACTION_DROP,
    "reset-client": ACTION_DENY,
    "reset-server": ACTION_DENY,
    "reset-both": ACTION_DENY,
}
_ANSWERS = {
    "deny": ANSWER_RESET_CLIENT | ANSWER_UNREACHABLE,
    "reset-client": ANSWER_RESET_CLIENT,
    "reset-server": ANSWER_RESET_SERVER,
    "reset-both": ANSWER_RESET_CLIENT | ANSWER_RESET_SERVER,
}


@dataclass(frozen=True)
class PolicyNames:
    """What the ids of a compiled policy are called."""

    rules: dict[int, str]
    """Rule id to name, the default rules included."""
    zones: dict[int, str]
    actions: dict[int, str]
    """Rule id to action."""

    def after(self, former: PolicyNames) -> PolicyNames:
        """The names of this policy, and for what it does not know those of the one before."""
        return PolicyNames(
            {**former.rules, **self.rules},
            {**former.zones, **self.zones},
            {**former.actions, **self.actions},
        )

    def rule(self, number: int) -> str:
        """The rule's name; an id of another policy is shown as number."""
        return self.rules.get(number, f"{number:#010x}" if number else "")

    def zone(self, number: int) -> str:
        """The zone's name; an id of another policy is shown as number."""
        return self.zones.get(number, f"{number:#06x}" if number else "")


class Loaded(NamedTuple):
    """A policy in its three forms."""

    policy: Policy
    compiled: CompiledPolicy
    names: PolicyNames


def load_policy(path: str | Path | None, mode: int = ASYNC) -> Loaded:
    """Read and compile a policy file; None denies everything. Raises ``ConfigError``.

    ``mode`` is that of rules that say nothing about resiliency.
    """
    policy = read_policy(path)
    return Loaded(policy, *compile_policy(policy, mode))


def default_names() -> PolicyNames:
    """The names in ``allow_all()`` and ``deny_all()``."""
    return compile_policy(Policy())[1]


def _signed(value: int) -> int:
    """64 bits as the int64 with the same bits."""
    return value - (1 << 64) if value >> 63 else value


def compile_policy(policy: Policy, mode: int = ASYNC) -> tuple[CompiledPolicy, PolicyNames]:
    """The arrays and the names; raises ``ConfigError`` where two names share an id. ``mode`` as in ``load_policy``."""
    zone_names = [zone.name for zone in policy.zones]
    if not policy.mapped:
        # Everything is in this zone then, and the kernel takes index 0 for it.
        home = policy.default_zone
        zone_names = [home, *(name for name in zone_names if name != home)]
    index = {name: k for k, name in enumerate(zone_names)}
    zone_lines = {zone.name: zone.line for zone in policy.zones}
    zone_ids = _ids(policy, "zone", [(name, zone_id(name), zone_lines.get(name)) for name in zone_names])

    active = [rule for rule in policy.rules if not rule.disabled]
    for active_rule in active:
        _refuse_unmatchable(policy, active_rule)
    named: list[tuple[str, int, int | None]] = [
        (INTRAZONE_DEFAULT, rule_id(INTRAZONE_DEFAULT), None),
        (INTERZONE_DEFAULT, rule_id(INTERZONE_DEFAULT), None),
    ]
    # A disabled rule keeps its id: sessions it once allowed may still be in the store.
    named += [(rule.name, rule_id(rule.name), rule.line) for rule in policy.rules]
    rule_ids = _ids(policy, "rule", named)

    rows = np.zeros((len(active) + 2, RULE_COLUMNS), np.int64)
    deciding: list[Rule | DefaultRule] = [*active, policy.intrazone_default, policy.interzone_default]
    for row, rule in zip(rows, deciding, strict=True):
        row[:] = (
            _ACTIONS[rule.action],
            rule_id(rule.name),
            rule.log_start,
            rule.log_end,
            mode if rule.mode is None else rule.mode,
            _answer(rule),
        )

    endpoints = sorted(
        (_signed(endpoint), index[zone.name]) for zone in policy.zones for endpoint in zone.endpoints
    )
    compiled = CompiledPolicy(
        endpoints=np.array(endpoints, np.int64).reshape(len(endpoints), 2),
        zones=np.array([zone_id(name) for name in zone_names], np.int64),
        rules=rows,
        **compile_fields(active, index),
    )
    return compiled, PolicyNames(rule_ids, zone_ids, {rule_id(rule.name): rule.action for rule in deciding})


def _answer(rule: Rule | DefaultRule) -> int:
    """What the ends of a session are told that the rule refuses.

    What no rule speaks of is not answered: a default rule that denies is silent, unless it asks for unreachables.
    """
    if rule.action == "allow":
        return 0
    silent = rule.action == "drop" or (rule.action == "deny" and isinstance(rule, DefaultRule))
    answer = 0 if silent else _ANSWERS[rule.action]
    if rule.icmp_unreachable:
        answer |= ANSWER_UNREACHABLE | (ANSWER_UNREACHABLE_TCP if silent else 0)
    return answer


def _refuse_unmatchable(policy: Policy, rule: Rule) -> None:
    """Raises ``ConfigError`` for a rule that names what no packet shows: left out, it would match more."""
    for key, value, expected in (
        ("application", rule.applications, "no applications: only ports can be matched so far"),
        ("host", rule.hosts, "no hosts: names cannot be matched so far"),
    ):
        if value is not None:
            raise ConfigError(
                policy.file, expected, line=rule.line, key=f"{rule.name}.{key}", value=", ".join(value)
            )


def _ids(policy: Policy, what: str, named: list[tuple[str, int, int | None]]) -> dict[int, str]:
    found: dict[int, str] = {}
    for name, number, line in named:
        if number in found:
            raise ConfigError(
                policy.file,
                f"another name: its id in the store is that of {what} {found[number]}",
                line=line,
                key=what,
                value=name,
            )
        found[number] = name
    return found
