"""Configuration text becomes nodes that know their place; what is ambiguous or a trick is refused."""

from __future__ import annotations

import pytest
import yaml

from everwall import config
from everwall.config import ConfigError, Node, load_yaml


@pytest.fixture(params=["SafeLoader", "CSafeLoader"], autouse=True)
def loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both of PyYAML's parsers: wheels bring the C one, a source build may not."""
    if not hasattr(yaml, request.param):
        pytest.skip("PyYAML was built without libyaml")
    monkeypatch.setattr(config, "_LOADER", getattr(yaml, request.param))


def root(text: str) -> dict[str, Node]:
    node = load_yaml("a.yaml", text)
    assert node is not None
    return node.mapping()


def test_every_value_knows_its_line_column_and_path() -> None:
    node = root("# first\na:\n  b:\n  - x\n  -\n    c: y\n")["a"].mapping()["b"].items()[1].mapping()["c"]
    assert (node.line, node.column, node.key, node.data) == (6, 8, "a.b[2].c", "y")
    assert str(node.error("z")) == "a.yaml:6:8: a.b[2].c: 'y': expected z"
    outer = root("a:\n  b: 1\n")["a"]
    assert (outer.line, outer.key_line, outer.key_column) == (2, 1, 1)


@pytest.mark.parametrize("word", ["0123", "1:20", "1e3", "no", "2001-01-01", "0x10", "=", ".inf", "1_000"])
def test_words_are_taken_as_they_are_written(word: str) -> None:
    assert root(f"a: {word}")["a"].text() == word


@pytest.mark.parametrize("text", ["", "\n", "# c\n", "---\n", "~\n", "null\n", "--- ~\n...\n"])
def test_nothing_is_nothing(text: str) -> None:
    assert load_yaml("a.yaml", text) is None


def test_quoted_words_are_never_nothing() -> None:
    found = root("a: ''\nb: \"null\"\nc: '~'\nd: |\n  null\ne:\nf: null\n")
    assert [found[key].data for key in "abcdef"] == ["", "null", "~", "null\n", None, None]


@pytest.mark.parametrize(
    ("text", "value"),
    [("yes", True), ("True", True), ("on", True), ("no", False), ("OFF", False), ("'false'", False)],
)
def test_flags(text: str, value: bool) -> None:
    assert root(f"a: {text}")["a"].boolean() is value


@pytest.mark.parametrize("text", ["0.5", "1e3", "0x10", "'1 '", "11", "-1", "", "[1]", "\u0661", "9" * 30])
def test_numbers_out_of_range_or_of_another_form(text: str) -> None:
    with pytest.raises(ConfigError, match="a whole number from 0 to 10"):
        root(f"a: {text}")["a"].integer(0, 10)


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        ("a: 1\nb: &x 2\nc: *x\n", 3, "not an alias"),
        ("a: 1\n<<: *x\n", 2, "not an alias"),
        ("a: !!binary aGk=\n", 1, "without a tag"),
        ("a: !thing {}\n", 1, "without a tag"),
        ("a: 1\nb: 2\na: 3\n", 3, "each key once (it stands in line 1 already)"),
        ("a: 1\n---\nb: 1\n", 2, "one YAML document"),
        ("a: 1\n{b: 1}: 2\n", 2, "a plain word as key"),
        ("a: 1\nb: [1, 2\n", 3, "YAML"),
        ("a: 1\nb: 'x\n", 3, "YAML"),
        ("a: 1\n\tb: 2\n", 2, "YAML"),
        ("a: 1\nb: \x1b[31m\n", 2, "printable text"),
    ],
)
def test_tricks_and_mistakes_are_refused_with_their_line(text: str, line: int, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_yaml("a.yaml", text)
    assert expected in caught.value.expected
    assert caught.value.line == line


def test_depth_cannot_exhaust_the_stack() -> None:
    for text in ("[" * 100_000, "{a: " * 50_000, "- " * 50_000 + "a"):
        with pytest.raises(ConfigError, match=r"levels of nesting|YAML"):
            load_yaml("a.yaml", text)


def test_a_message_is_one_harmless_line() -> None:
    with pytest.raises(ConfigError) as caught:
        root('"a\\e[31m\\nb": ' + "v" * 1000)["a\x1b[31m\nb"].integer(0, 1)
    said = str(caught.value)
    assert said.isprintable()
    assert len(said) < 200
