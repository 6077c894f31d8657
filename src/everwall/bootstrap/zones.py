"""The policy that a bootstrap means, and the zones of the endpoints that it puts on subinterfaces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from everwall.bootstrap.associations import KEY, Association
from everwall.bootstrap.faults import ZoneError
from everwall.bootstrap.init_cfg import InitCfg
from everwall.config import ConfigError
from everwall.policy.compile import Loaded, compile_policy
from everwall.policy.files import is_panos
from everwall.policy.model import Policy
from everwall.policy.panos import load_panos
from everwall.policy.rules import read_policy


def load_policy_of(config: InitCfg) -> Loaded:
    """The policy that the configuration names, compiled. Raises ConfigError."""
    policy = read_policy_of(config)
    return Loaded(policy, *compile_policy(policy, config.resiliency_mode))


def read_policy_of(config: InitCfg) -> Policy:
    """The policy that the configuration names, with its endpoints in their zones. Raises ConfigError."""
    path = config.policy
    if path is not None and is_panos(path):
        named: dict[str, list[str]] = {}
        for each in config.associations:
            named.setdefault(each.interface, []).append(each.vpce)
        return load_panos(path, None, config.accept_ports, endpoints=named).policy
    numbers: dict[str, list[int]] = {}
    for each in config.associations:
        numbers.setdefault(each.interface, []).append(each.endpoint)
    return _looked_over(read_policy(path, None, config.accept_ports, numbers), config.associations)


def read_policy_again(config: InitCfg, before: InitCfg) -> Policy:
    """The policy of a node that runs, and that had one ``before``.

    Raises ConfigError, also for an empty file or none: an editor or a full disk leaves one for a moment, and a node
    that denies everything ends every session.
    """
    if config.policy is None and before.policy is not None:
        raise ConfigError(
            config.file, "a policy, as before; where everything is to be denied, one with 'rules: []'"
        )
    if config.policy is not None and config.policy.is_file() and not config.policy.read_bytes().strip():
        raise ConfigError(str(config.policy), "a policy; where everything is to be denied, write 'rules: []'")
    return read_policy_of(config)


def with_policy_of(config: InitCfg, fresh: InitCfg) -> InitCfg:
    """A configuration with what of another one belongs to the policy."""
    return replace(
        config,
        policy=fresh.policy,
        associations=fresh.associations,
        accept_ports=fresh.accept_ports,
        resiliency_mode=fresh.resiliency_mode,
    )


def _looked_over(policy: Policy, associations: Sequence[Association]) -> Policy:
    """With a warning for each endpoint whose interface is in no zone: its packets are dropped.

    Raises ZoneError where no endpoint has a zone: everything would be in one then, which nobody wrote.
    """
    mapped = {endpoint for zone in policy.zones for endpoint in zone.endpoints}
    known = [interface for zone in policy.zones for interface in zone.interfaces]
    if associations and policy.file and not mapped:
        first = associations[0]
        raise ZoneError(
            first.file,
            f"the interface of an endpoint in a zone of {policy.file} "
            f"(interfaces of its zones: {', '.join(known) or 'none has any'})",
            line=first.line,
            key=KEY,
            value=first.interface,
        )
    missing = [
        f"{each.place}: {each.interface} is in no zone: packets of {each.vpce} are dropped"
        for each in associations
        if each.interface not in known
    ]
    return replace(policy, warnings=(*policy.warnings, *missing))
