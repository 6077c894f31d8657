"""Policies for simulated clusters, and the plain reading of them that judges the engine.

A rulebook is written out as YAML and compiled as an operator's would be; ``allows`` reads the same
rules in plain Python. The two share no code.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from everwall.policy.compile import compile_policy
from everwall.policy.match import CompiledPolicy
from everwall.policy.rules import read_policy
from everwall.sim.flows import Flow
from everwall.sim.packets import ICMP, ICMPV6, TCP, UDP

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class Rule:
    """One rule; None stands for any."""

    name: str
    allow: bool
    protocol: int
    """TCP, UDP or ICMP, which means ICMPv6 too."""
    first_port: int = 0
    last_port: int = 65535
    servers: tuple[Network, ...] | None = None
    zone: str | None = None
    answers: bool = True
    """What it refuses is told so."""
    strict: bool = False
    """The first answer waits until the store has the session."""

    def fits(self, flow: Flow, zone: str | None) -> bool:
        """Whether the rule speaks about the flow's client asking its server."""
        protocol = ICMP if flow.protocol == ICMPV6 else flow.protocol
        if protocol != self.protocol:
            return False
        if protocol != ICMP and not self.first_port <= flow.sport <= self.last_port:
            return False
        if self.zone is not None and zone != self.zone:
            return False
        if self.servers is None:
            return True
        server = ipaddress.ip_address(flow.server)
        return any(server.version == net.version and server in net for net in self.servers)

    def yaml(self) -> str:
        """The rule in the form of a policy file."""
        service = {TCP: "tcp", UDP: "udp", ICMP: "icmp"}[self.protocol]
        if self.protocol != ICMP:
            service += f"/{self.first_port}-{self.last_port}"
        servers = "any" if self.servers is None else "[" + ", ".join(f'"{net}"' for net in self.servers) + "]"
        action = "allow" if self.allow else "reset-both, icmp-unreachable: yes" if self.answers else "drop"
        text = f"  - {{name: {self.name}, source: any, destination: {servers}, service: {service}"
        if self.zone is not None:
            text += f", from: {self.zone}, to: {self.zone}"
        if self.strict:
            text += ", resiliency: strict"
        return text + f", action: {action}}}\n"


@dataclass(frozen=True)
class Rulebook:
    """First match wins; what nothing speaks about is denied."""

    rules: tuple[Rule, ...]
    zones: tuple[tuple[str, int], ...] = ()
    """(zone, endpoint); without any, no endpoint is told from another."""

    def allows(self, flow: Flow) -> bool:
        """Whether the flow's client may ask its server."""
        rule = self._rule(flow)
        return rule is not None and rule.allow

    def is_strict(self, flow: Flow) -> bool:
        """Whether the flow's client gets no answer before the store has its session."""
        rule = self._rule(flow)
        return rule is not None and rule.allow and rule.strict

    def answers(self, flow: Flow) -> bool:
        """Whether the flow's ends are told that its client may not ask its server."""
        rule = self._rule(flow)
        return rule is not None and not rule.allow and rule.answers

    def _rule(self, flow: Flow) -> Rule | None:
        """The rule that decides about a flow."""
        zone = None
        if self.zones:
            zone = next((name for name, endpoint in self.zones if endpoint == flow.endpoint), None)
            if zone is None:
                return None
        return next((rule for rule in self.rules if rule.fits(flow, zone)), None)

    def with_first(self, rule: Rule) -> Rulebook:
        """A rulebook with one more rule, before all others."""
        return Rulebook((rule, *self.rules), self.zones)

    def compiled(self) -> CompiledPolicy:
        """The arrays that an engine reads."""
        text = ""
        if self.zones:
            text += "zones:\n"
            for zone, endpoint in self.zones:
                text += f"  {zone}: {{endpoints: [{endpoint}]}}\n"
        text += "rules:\n" + "".join(rule.yaml() for rule in self.rules)
        return compile_policy(read_policy("rulebook", text))[0]
