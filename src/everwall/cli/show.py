"""``everwall show``: what a running firewall or load balancer says about itself."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from everwall.cli.common import CONTROL_OPTION, fail
from everwall.management.control import request
from everwall.verdict import Verdict

_LABELS = {verdict.label: verdict for verdict in Verdict}


class What(StrEnum):
    """The questions; a firewall answers the first four, a load balancer status, counters and the last two."""

    status = "status"
    counters = "counters"
    sessions = "sessions"
    store = "store"
    targets = "targets"
    flows = "flows"


_WITH_LIMIT = (What.sessions, What.flows)


def command(
    what: Annotated[What, typer.Argument(help="What to look at.")],
    control: Annotated[Path, CONTROL_OPTION],
    as_json: Annotated[bool, typer.Option("--json", help="The answer as it came, one JSON object.")] = False,
    limit: Annotated[int, typer.Option(help="At most this many sessions or flows.", min=1)] = 100,
    workers: Annotated[
        bool, typer.Option("--workers", help="Counters of each worker beside their sum.")
    ] = False,
    zero: Annotated[bool, typer.Option("--zero", help="Counters that are 0 as well.")] = False,
) -> None:
    """Look into a running firewall or load balancer through its control socket.

    Ends with 1 when nobody answers there or the process does not know the question.
    """
    arguments = {"limit": limit} if what in _WITH_LIMIT else {}
    try:
        answer = request(control, what.value, **arguments)
    except OSError as error:
        fail(f"{control}: {error.strerror or error}")
    if as_json:
        typer.echo(json.dumps(answer))
    elif answer["ok"]:
        del answer["ok"]
        Console().print(*tables(what.value, answer, zero, workers), sep="\n")
    if not answer.get("ok", True):
        fail(answer["error"])


def tables(what: str, answer: dict[str, Any], zero: bool = False, workers: bool = False) -> list[Table | str]:
    """The answer as tables: counters with their meaning, lists of objects by column, the rest by name."""
    if what == "counters":
        each = answer.get("workers", []) if workers else []
        return [_counters(answer.get("counters", answer), each, zero)]
    facts = Table(title=what, show_header=False, title_justify="left")
    found: list[Table | str] = []
    for name, value in _flat(answer):
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            found.append(_rows(name, value))
        elif isinstance(value, list) and not value:
            found.append(f"{escape(name)}: none")
        else:
            facts.add_row(escape(name), _text(value))
    return [*([facts] if facts.row_count else []), *found]


def _counters(counters: dict[str, Any], each: list[dict[str, Any]], zero: bool) -> Table:
    """``each``: the counters of each worker, for a column each."""
    names = [f"worker {number}" for number in range(len(each))]
    table = Table("name", "count", *names, "meaning", title="counters", title_justify="left")
    for column in table.columns[1:-1]:
        column.justify = "right"
    for name, count in counters.items():
        if not count and not zero:
            continue
        verdict = _LABELS.get(name)
        # Something is misconfigured, overloaded or broken where a counter that is not normal moves.
        style = "yellow" if verdict is not None and not verdict.normal and count else ""
        counts = [_text(count), *(_text(one.get(name, 0)) for one in each)]
        meaning = verdict.meaning if verdict is not None else ""
        table.add_row(escape(name), *counts, meaning, style=style)
    return table


def _rows(name: str, rows: list[dict[str, Any]]) -> Table:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    table = Table(title=f"{name}: {len(rows)}", title_justify="left")
    for column in columns:
        numbers = all(isinstance(row.get(column), int | float | None) for row in rows)
        table.add_column(escape(column), justify="right" if numbers else "left")
    for row in rows:
        table.add_row(*(_text(row.get(column)) for column in columns))
    return table


def _flat(answer: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for name, value in answer.items():
        if isinstance(value, dict):
            flat += _flat(value, f"{prefix}{name}.")
        else:
            flat.append((prefix + name, value))
    return flat


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.3f}".rstrip("0").rstrip(".")
    return escape(str(value))
