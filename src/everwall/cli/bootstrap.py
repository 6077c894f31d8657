"""``everwall bootstrap``: look over a package before a node has to live with it, or begin a new one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from everwall.bootstrap.begin import begin_package
from everwall.bootstrap.faults import BootstrapError, titled
from everwall.bootstrap.load import given_by_environment, load_bootstrap
from everwall.cli.common import (
    ACCEPT_PORTS_OPTION,
    REGION_OPTION,
    SECRET_FILE_OPTION,
    SECRET_ID_OPTION,
    SERIAL_OPTION,
    SOURCE_HELP,
    fail,
)
from everwall.config import ConfigError

group = typer.Typer(no_args_is_help=True)


@group.callback()
def bootstrap() -> None:
    """Look over a bootstrap package, or begin one."""


@group.command()
def check(
    source: Annotated[str, typer.Argument(help=SOURCE_HELP)],
    serial: Annotated[str | None, SERIAL_OPTION] = None,
    cluster_secret_file: Annotated[Path | None, SECRET_FILE_OPTION] = None,
    cluster_secret_id: Annotated[str | None, SECRET_ID_OPTION] = None,
    aws_region: Annotated[str | None, REGION_OPTION] = None,
    accept_ports: Annotated[bool, ACCEPT_PORTS_OPTION] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Say what a node would do with it. Nothing is changed, and no secret is shown.

    Ends with 1 when a node would not start.
    """
    # The compiler of policies brings Numba along, and `init` does without.
    from everwall.bootstrap.report import lines
    from everwall.bootstrap.zones import load_policy_of

    try:
        given = given_by_environment(cluster_secret_file, cluster_secret_id, serial, aws_region, accept_ports)
        read = load_bootstrap(source, given)
        policy = load_policy_of(read.config).policy
    except ConfigError as error:
        if as_json:
            typer.echo(json.dumps({"ok": False, "error": _as_json(error)}))
            raise typer.Exit(1) from None
        fail(titled(error))
    facts, warnings = list(lines(read, policy)), (*read.warnings, *policy.warnings)
    if as_json:
        body = {"facts": facts, "warnings": warnings, "notes": read.notes, "would_say": read.config.notes}
        typer.echo(json.dumps({"ok": True, **body}))
        return
    width = max(len(name) for name, _ in facts)
    for name, text in facts:
        typer.echo(f"{name:<{width}}  {text}")
    for level, texts, colour in (("warning", warnings, "yellow"), ("note", read.notes, "bright_black")):
        for text in texts:
            typer.echo(f"{typer.style(level, fg=colour)}: {text}")
    typer.echo(f"A node would start; {'; '.join(read.config.notes)}")


@group.command()
def init(
    folder: Annotated[Path, typer.Argument(help="An empty folder, or one that is not there yet.")],
) -> None:
    """Write a commented package with a fresh cluster secret; nobody but you may read it."""
    try:
        written = begin_package(folder)
    except ConfigError as error:
        fail(titled(error))
    for path in written:
        typer.echo(f"wrote {path}")
    typer.echo(f"Fill in {written[0]}, then: everwall bootstrap check {folder}")


def _as_json(error: ConfigError) -> dict[str, object]:
    return {
        "name": error.title if isinstance(error, BootstrapError) else "Bad policy or file",
        "file": error.file,
        "line": error.line,
        "key": error.key,
        "value": None if error.value is None else str(error.value),
        "expected": error.expected,
    }
