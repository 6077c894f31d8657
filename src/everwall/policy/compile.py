"""From the policy as people write it to the arrays that ``match`` reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from everwall.config import ConfigError
from everwall.modes import ASYNC
from everwall.policy.match import (
    ACTION_ALLOW,
    ACTION_DENY,
    ACTION_DROP,
    ANY,
    INTERZONE_DEFAULT,
    INTRAZONE_DEFAULT,
    RANGE_COLUMNS,
    RULE_ACTION,
    RULE_COLUMNS,
    RULE_DESTINATION,
    RULE_FROM,
    RULE_ID,
    RULE_LOG_END,
    RULE_LOG_START,
    RULE_MODE,
    RULE_SERVICE,
    RULE_SOURCE,
    RULE_TO,
    SERVICE_COLUMNS,
    CompiledPolicy,
    rule_id,
    zone_id,
)
from everwall.policy.model import AddressRange, DefaultRule, Policy, Rule, Service
from everwall.policy.rules import read_policy

# Resets are not sent yet: the client is left without an answer, as with deny.
_ACTIONS = {
    "allow": ACTION_ALLOW,
    "deny": ACTION_DENY,
    "drop": ACTION_DROP,
    "reset-client": ACTION_DENY,
    "reset-server": ACTION_DENY,
    "reset-both": ACTION_DENY,
}
_LOW_HALF = (1 << 64) - 1


@dataclass(frozen=True)
class PolicyNames:
    """What the ids of a compiled policy are called."""

    rules: dict[int, str]
    """Rule id to name, the default rules included."""
    zones: dict[int, str]

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


class _Pool:
    """Rows of a shared array; what several rules name alike stands there once."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.rows: list[Sequence[int]] = []
        self.slices: dict[tuple[Sequence[int], ...], tuple[int, int]] = {}

    def add(self, rows: Iterable[Sequence[int]] | None) -> tuple[int, int]:
        """Where the rows stand: first and one past the last; ANY for None."""
        if rows is None:
            return ANY, ANY
        wanted = tuple(rows)
        if wanted not in self.slices:
            first = len(self.rows)
            self.rows.extend(wanted)
            self.slices[wanted] = first, len(self.rows)
        return self.slices[wanted]

    def array(self) -> npt.NDArray[np.int64]:
        return np.array(self.rows, np.int64).reshape(len(self.rows), self.columns)


def _range_row(entry: AddressRange) -> tuple[int, ...]:
    ends = (entry.first >> 64, entry.first & _LOW_HALF, entry.last >> 64, entry.last & _LOW_HALF)
    return (entry.family, *(_signed(half) for half in ends))


def _service_row(entry: Service) -> tuple[int, ...]:
    return (
        entry.family or ANY,
        entry.protocol,
        entry.first_source_port,
        entry.last_source_port,
        entry.first_port,
        entry.last_port,
    )


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
    named: list[tuple[str, int, int | None]] = [
        (INTRAZONE_DEFAULT, rule_id(INTRAZONE_DEFAULT), None),
        (INTERZONE_DEFAULT, rule_id(INTERZONE_DEFAULT), None),
    ]
    # A disabled rule keeps its id: sessions it once allowed may still be in the store.
    named += [(rule.name, rule_id(rule.name), rule.line) for rule in policy.rules]
    rule_ids = _ids(policy, "rule", named)

    members, ranges, services = _Pool(1), _Pool(RANGE_COLUMNS), _Pool(SERVICE_COLUMNS)
    rows = np.full((len(active) + 2, RULE_COLUMNS), ANY, np.int64)
    _fill_decision(rows[-2], policy.intrazone_default, mode)
    _fill_decision(rows[-1], policy.interzone_default, mode)
    for row, rule in zip(rows, active, strict=False):
        _refuse_unmatchable(policy, rule)
        _fill_decision(row, rule, mode)
        for column, zones in ((RULE_FROM, rule.from_zones), (RULE_TO, rule.to_zones)):
            row[column : column + 2] = members.add(
                None if zones is None else [(index[name],) for name in zones]
            )
        for column, addresses in ((RULE_SOURCE, rule.source), (RULE_DESTINATION, rule.destination)):
            row[column : column + 2] = ranges.add(
                None if addresses is None else [_range_row(entry) for entry in addresses]
            )
        row[RULE_SERVICE : RULE_SERVICE + 2] = services.add(
            None if rule.service is None else [_service_row(entry) for entry in rule.service]
        )

    endpoints = sorted(
        (_signed(endpoint), index[zone.name]) for zone in policy.zones for endpoint in zone.endpoints
    )
    compiled = CompiledPolicy(
        endpoints=np.array(endpoints, np.int64).reshape(len(endpoints), 2),
        zones=np.array([zone_id(name) for name in zone_names], np.int64),
        rules=rows,
        members=members.array().reshape(-1),
        ranges=ranges.array(),
        services=services.array(),
    )
    return compiled, PolicyNames(rule_ids, zone_ids)


def _refuse_unmatchable(policy: Policy, rule: Rule) -> None:
    """Raises ``ConfigError`` for a rule that names what the arrays cannot say: left out, it would match more."""
    for key, value, expected in (
        ("application", rule.applications, "no applications: only ports can be matched so far"),
        ("host", rule.hosts, "no hosts: names cannot be matched so far"),
        ("negate-source", rule.negate_source or None, "no negation: it cannot be matched so far"),
        ("negate-destination", rule.negate_destination or None, "no negation: it cannot be matched so far"),
        (
            "rule-type",
            rule.rule_type if rule.rule_type != "universal" else None,
            "universal: other types cannot be matched so far",
        ),
    ):
        if value is not None:
            shown = ", ".join(value) if isinstance(value, tuple) else value
            raise ConfigError(policy.file, expected, line=rule.line, key=f"{rule.name}.{key}", value=shown)


def _fill_decision(row: npt.NDArray[np.int64], rule: Rule | DefaultRule, mode: int) -> None:
    row[RULE_ACTION] = _ACTIONS[rule.action]
    row[RULE_ID] = rule_id(rule.name)
    row[RULE_LOG_START] = rule.log_start
    row[RULE_LOG_END] = rule.log_end
    row[RULE_MODE] = mode if rule.mode is None else rule.mode


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
