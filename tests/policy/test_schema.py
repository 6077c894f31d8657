"""What an editor is told about the form of a policy is what the reader takes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import fastjsonschema
import pytest
import yaml

from everwall.config import ConfigError, Node, load_yaml
from everwall.policy.panos import load_panos
from everwall.policy.rules import read_policy
from tests.policy.test_match import random_document, yaml_text
from tests.policy.test_rules import FULL, GOOD
from tests.policy.wrong import WRONG

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT / "docs" / "policy.schema.json"
is_valid = fastjsonschema.compile(json.loads(PUBLISHED.read_text()))

PAGE = (ROOT / "docs" / "policy.md").read_text().split("```yaml\n")[1].split("```")[0]
IMPORTED = load_panos(Path(__file__).parent / "files" / "inspection.xml").yaml()

# What a schema has no words for: names that are known or used already, and values beyond their letters.
BEYOND = {
    "unreachables of a rule that allows",
    "unreachables of a default rule that allows",
    "endpoint in two zones",
    "endpoint above 64 bits",
    "any and an endpoint elsewhere",
    "any for two zones",
    "no address",
    "octet over 255",
    "prefix too long",
    "v6 prefix too long",
    "bits after the prefix",
    "range upside down",
    "range over families",
    "an address's name is an address",
    "misspelt member",
    "group in a circle",
    "group of itself",
    "a wildcard with bits set",
    "a scattered wildcard",
    "a host name that ends in a number",
    "a negated host name",
    "port over 65535",
    "ports upside down",
    "protocol over 255",
    "a number only",
    "a service's name is a service",
    "any is negated",
    "an intrazone rule with an end",
    "unknown zone",
    "unknown source",
    "unknown service",
    "a rule's name twice",
    "a rule with a reserved name",
    "any application at its own ports",
    "an application without known ports",
    "an application of applications",
}


def plain(node: Node) -> Any:
    """A document as the reader sees it: scalars are text."""
    if isinstance(node.data, dict):
        return {name: plain(item) for name, item in node.data.items()}
    return [plain(item) for item in node.data] if isinstance(node.data, list) else node.data


def says(document: Any) -> str:
    """Why the schema refuses a document, or nothing."""
    try:
        is_valid(document)
    except fastjsonschema.JsonSchemaException as error:
        return str(error)
    return ""


@pytest.mark.parametrize("text", [GOOD, FULL, PAGE, IMPORTED], ids=["good", "full", "page", "imported"])
def test_what_is_right_is_right_for_both(text: str) -> None:
    read_policy("p.yaml", text)
    node = load_yaml("p.yaml", text)
    assert node is not None
    assert says(plain(node)) == ""
    assert says(yaml.safe_load(text)) == "", "an editor sees numbers and truth values"


@pytest.mark.parametrize("case", WRONG, ids=[case[0] for case in WRONG])
def test_what_has_a_wrong_form_is_wrong_for_both(case: tuple[str, str, Any, str, Any, str]) -> None:
    name, text = case[:2]
    with pytest.raises(ConfigError):
        read_policy("p.yaml", text)
    try:
        node = load_yaml("p.yaml", text)
    except ConfigError:
        return  # no YAML that we read: no schema is asked
    assert node is not None
    assert bool(says(plain(node))) is (name not in BEYOND)


def test_what_is_beyond_the_schema_is_there() -> None:
    assert {case[0] for case in WRONG} >= BEYOND


def test_random_policies_are_right_for_both() -> None:
    draw = random.Random(7)
    for _ in range(60):
        text = yaml_text(random_document(draw))
        read_policy("p.yaml", text)
        node = load_yaml("p.yaml", text)
        assert node is not None
        assert says(plain(node)) == "", text


def test_the_schema_takes_whatever_the_reader_takes() -> None:
    draw = random.Random(11)
    taken = 0
    for _ in range(400):
        base = draw.choice([GOOD, FULL, PAGE, IMPORTED])
        at = draw.randrange(len(base))
        text = base[:at] + draw.choice([*"[]{}:,-#*!|>'\" \n0a./", "any", "true", ""]) + base[at + 1 :]
        try:
            read_policy("p.yaml", text)
        except ConfigError:
            continue
        node = load_yaml("p.yaml", text)
        if node is not None:
            taken += 1
            assert says(plain(node)) == "", text
    assert taken > 60
