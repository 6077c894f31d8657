"""A policy's document made by a program: nodes in the form of the YAML file, and the file itself."""

from __future__ import annotations

from typing import Any

import yaml

from everwall.config import Node

Plain = str | bool | list["Plain"] | dict[str, "Plain"]
_WIDTH = 110
_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def node_of(file: str, line: int, key: str, value: Plain | Node | list[Any] | dict[str, Any]) -> Node:
    """Plain values as a node, as if they had been read from one line of ``file``; nodes in them stay as they are."""
    if isinstance(value, Node):
        return value
    data: str | list[Node] | dict[str, Node]
    if isinstance(value, bool):
        data = "true" if value else "false"
    elif isinstance(value, str):
        data = value
    elif isinstance(value, list):
        data = [node_of(file, line, f"{key}[{k}]", item) for k, item in enumerate(value, 1)]
    else:
        data = {name: node_of(file, line, f"{key}.{name}", item) for name, item in value.items()}
    return Node(file, line, 1, key, data, line, 1)


def yaml_text(document: Node, heading: str = "") -> str:
    """The YAML file that reads back as ``document``; ``heading`` stands before it as comment."""
    lines = [f"# {line}".rstrip() for line in heading.splitlines()]
    assert isinstance(document.data, dict)
    for name, section in document.data.items():
        if lines:
            lines.append("")
        # Lists and mappings of words alone stand in one line, everything else in its own.
        text = yaml.dump(
            {name: _plain(section)},
            Dumper=_DUMPER,
            sort_keys=False,
            allow_unicode=True,
            width=_WIDTH,
            default_flow_style=None,
        )
        lines += text.rstrip("\n").split("\n")
    return "\n".join(lines) + "\n"


def _plain(node: Node) -> Any:
    if isinstance(node.data, dict):
        return {name: _plain(item) for name, item in node.data.items()}
    if isinstance(node.data, list):
        return [_plain(item) for item in node.data]
    if node.data in ("true", "false"):
        return node.data == "true"
    return node.data
