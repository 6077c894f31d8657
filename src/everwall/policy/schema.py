"""The form of a policy file as JSON schema (draft 7), for editors; ``docs/policy.schema.json`` is written from it.

The reader (``everwall.policy.rules``) is stricter where a schema has no words: names that have to be known, things
that stand once, values that are not what their letters suggest. Whatever the reader takes, the schema takes.
"""

from __future__ import annotations

from typing import Any

from everwall.limits import (
    DESCRIPTION_MAX,
    HOST_NAME_MAX,
    POLICY_NAME_MAX,
    POLICY_RULES_MAX,
    POLICY_ZONES_MAX,
)
from everwall.policy.model import ACTIONS, PROTOCOLS, RULE_TYPES
from everwall.policy.objects import ADDRESS_KEYS, NOTE_KEYS, SERVICE_KEYS
from everwall.policy.rules import (
    DEFAULT_RULE_KEYS,
    DEFAULT_RULES,
    RULE_KEYS,
    RULE_KEYS_REQUIRED,
    SECTIONS,
    ZONE_KEYS,
)
from everwall.policy.settings import REJECT_NON_SYN, SETTING_KEYS, TIMEOUTS
from everwall.policy.words import APPLICATION, ENDPOINT, FQDN, HOST, INTERFACE

Schema = dict[str, Any]

# A reader of YAML makes numbers and truth values of words that are names here.
_TEXT = ["string", "number", "boolean"]
_PORTS = "[0-9]{1,5}(-[0-9]{1,5})?"
_IP = "[0-9A-Fa-f:.]+"


def _ref(name: str) -> Schema:
    return {"$ref": f"#/definitions/{name}"}


def _text(pattern: str, longest: int) -> Schema:
    return {"type": _TEXT, "minimum": 0, "pattern": f"^({pattern})$", "minLength": 1, "maxLength": longest}


def _one_or_more(entry: Schema) -> Schema:
    """An entry or a list of them; ``any`` is none of them."""
    item = {"allOf": [entry, {"not": {"const": "any"}}]}
    return {"anyOf": [item, {"type": "array", "minItems": 1, "items": item}]}


def _seconds(most: int) -> Schema:
    return {"type": ["integer", "string"], "pattern": "^[0-9]{1,8}$", "minimum": 1, "maximum": most}


def _or_any(entry: Schema) -> Schema:
    return {"anyOf": [{"enum": ["any", ["any"]]}, _one_or_more(entry)]}


def _mapping(keys: tuple[str, ...], values: dict[str, Schema], required: tuple[str, ...] = ()) -> Schema:
    assert set(keys) == set(values), "the schema has the keys that the reader has"
    found: Schema = {
        "type": "object",
        "additionalProperties": False,
        "properties": {key: values[key] for key in keys},
    }
    if required:
        found["required"] = list(required)
    return found


def _named(value: Schema, names: str = "name") -> Schema:
    return {
        "type": ["object", "null"],
        "propertyNames": {"allOf": [_ref(names), {"not": {"const": "any"}}]},
        "additionalProperties": value,
    }


def schema() -> Schema:
    """The schema of a policy file."""
    notes = {"description": _ref("description"), "tags": _one_or_more(_ref("name"))}
    flag = _ref("flag")
    rule = {
        "name": _ref("name"),
        "rule-type": {"enum": list(RULE_TYPES)},
        "from": _or_any(_ref("name")),
        "to": _or_any(_ref("name")),
        "source": _or_any(_ref("address")),
        "negate-source": flag,
        "destination": _or_any(_ref("address")),
        "negate-destination": flag,
        "application": _or_any(_ref("application")),
        "host": _or_any(_ref("host")),
        "service": _or_any(_ref("service")),
        "action": {"enum": list(ACTIONS)},
        "icmp-unreachable": flag,
        "log-start": flag,
        "log-end": flag,
        "disabled": flag,
        "resiliency": _ref("resiliency"),
        **notes,
    }
    default_rule = _mapping(DEFAULT_RULE_KEYS, {key: rule[key] for key in DEFAULT_RULE_KEYS})
    zone = _mapping(
        ZONE_KEYS,
        {
            "endpoints": _or_any(_ref("endpoint")),
            "interfaces": _one_or_more(_ref("interface")),
            "description": _ref("description"),
        },
    )
    sections = {
        "zones": {**_named({"anyOf": [{"type": "null"}, zone]}), "maxProperties": POLICY_ZONES_MAX},
        "addresses": _named(_object("address")),
        "services": _named(_object("service")),
        "applications": _named(_one_or_more(_ref("service")), "application"),
        "rules": {
            "type": ["array", "null"],
            "maxItems": POLICY_RULES_MAX,
            "items": _mapping(RULE_KEYS, rule, RULE_KEYS_REQUIRED),
        },
        "default-rules": {
            **_mapping(DEFAULT_RULES, dict.fromkeys(DEFAULT_RULES, default_rule)),
            "type": ["object", "null"],
        },
        "sessions": {
            **_mapping(
                SETTING_KEYS,
                {**{key: _seconds(most_s) for key, most_s in TIMEOUTS.values()}, REJECT_NON_SYN: flag},
            ),
            "type": ["object", "null"],
        },
    }
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Everwall policy",
        **_mapping(SECTIONS, sections),
        "definitions": _definitions(notes),
    }


def _object(kind: str) -> Schema:
    """A named address or service: its value, or a group that says something for people too."""
    value = _one_or_more(_ref(kind))
    group = _mapping(
        ("members", *NOTE_KEYS),
        {"members": value, "description": _ref("description"), "tags": _one_or_more(_ref("name"))},
        ("members",),
    )
    return {"anyOf": [value, group]}


def _definitions(notes: dict[str, Schema]) -> dict[str, Schema]:
    letters, last = "[A-Za-z0-9 ._-]", "[A-Za-z0-9._-]"
    name = _text(f"[A-Za-z0-9]({letters}*{last})?", POLICY_NAME_MAX)
    # Addresses and services by name, or as they are.
    address = {"type": _TEXT, "anyOf": [_ref("name"), {"pattern": f"^{_IP}(/[0-9]{{1,3}}| *- *{_IP})?$"}]}
    service = {
        "type": _TEXT,
        "anyOf": [_ref("name"), {"pattern": f"^(({'|'.join(PROTOCOLS)})/{_PORTS}|protocol/[0-9]{{1,3}})$"}],
    }
    special = {"fqdn": _text(FQDN.pattern, HOST_NAME_MAX), "wildcard": _text("[0-9.]+/[0-9.]+", 31), **notes}
    ports = {"type": _TEXT, "pattern": f"^{_PORTS}$", "minimum": 0, "maximum": 65535}
    entry: dict[str, Schema] = {
        "protocol": {"enum": list(PROTOCOLS)},
        "port": ports,
        "source-port": ports,
        **notes,
    }
    return {
        "name": name,
        "description": {"type": [*_TEXT, "null"], "maxLength": DESCRIPTION_MAX},
        "flag": {
            "type": ["boolean", "string"],
            "pattern": "^([Tt][Rr][Uu][Ee]|[Yy][Ee][Ss]|[Oo][Nn]|[Ff][Aa][Ll][Ss][Ee]|[Nn][Oo]|[Oo][Ff][Ff])$",
        },
        "resiliency": {
            # Some readers of YAML make false of off.
            "anyOf": [
                {"const": False},
                {"type": "string", "pattern": r"^(async|strict|off|min-age [0-9]{1,5}(\.[0-9])?s)$"},
            ]
        },
        "endpoint": _text(ENDPOINT.pattern, 22),
        "interface": _text(INTERFACE.pattern, 20),
        "address": {
            "anyOf": [
                address,
                {
                    **_mapping((*ADDRESS_KEYS, *NOTE_KEYS), special),
                    "oneOf": [{"required": [key]} for key in ADDRESS_KEYS],
                },
            ]
        },
        "service": {"anyOf": [service, _mapping((*SERVICE_KEYS, *NOTE_KEYS), entry, ("protocol",))]},
        "application": {"allOf": [_ref("name"), _text(APPLICATION.pattern, POLICY_NAME_MAX)]},
        "host": _text(HOST.pattern, HOST_NAME_MAX),
    }
