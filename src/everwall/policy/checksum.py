"""What a policy means, in sixteen digits: nodes with the same ones decide alike.

Of the policy after it was read, so that neither comments and descriptions count, nor the order of what is a set. What a
rule does not say is left out, so that a release that knows more about rules comes to the same digits.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from everwall.policy.rules import Policy

_WITHOUT_MEANING = {"file", "line", "warnings", "description", "tags", "disabled"}


def policy_checksum(policy: Policy, mode: int) -> str:
    """``mode``: when the sessions of rules that do not say so go to the store."""
    meaning = _plain(policy)
    # Of rules, and only of these, the order counts; what is disabled does not.
    meaning["rules"] = [_plain(rule) for rule in policy.rules if not rule.disabled]
    text = json.dumps([meaning, mode], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest()


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        said = {
            each.name: getattr(value, each.name)
            for each in fields(value)
            if each.name not in _WITHOUT_MEANING
        }
        defaults = {each.name: each.default for each in fields(value) if each.default is not MISSING}
        return {
            name: _plain(what)
            for name, what in said.items()
            if name not in defaults or what != defaults[name]
        }
    if isinstance(value, tuple | list | set | frozenset):
        return sorted((_plain(each) for each in value), key=lambda each: json.dumps(each, default=str))
    return value
