"""A policy from whatever file it stands in: our own YAML, or a configuration of PAN-OS."""

from __future__ import annotations

from pathlib import Path

from everwall.policy.model import Policy
from everwall.policy.panos import read_panos
from everwall.policy.rules import read_policy


def is_panos(path: Path) -> bool:
    """Whether a file is read as configuration of PAN-OS: by its name alone."""
    return path.suffix == ".xml"


def read_policy_file(path: Path, accept_ports_for_applications: bool = False) -> Policy:
    """The policy in a file. Raises ``ConfigError``."""
    if is_panos(path):
        return read_panos(path, accept_ports_for_applications=accept_ports_for_applications)
    return read_policy(path, accept_ports_for_applications=accept_ports_for_applications)
