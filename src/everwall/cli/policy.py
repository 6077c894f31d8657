"""``everwall policy``: look over a policy without running it, and bring one along from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from everwall.cli import policy_reload, policy_test
from everwall.cli.common import ACCEPT_PORTS_OPTION, fail
from everwall.config import ConfigError

group = typer.Typer(no_args_is_help=True)
group.command("test")(policy_test.command)
group.command("reload")(policy_reload.command)


@group.callback()
def policy() -> None:
    """Look over a policy, and bring one along."""


@group.command()
def check(
    file: Annotated[Path, typer.Argument(help="The policy: YAML, or a bootstrap.xml.")],
    accept_ports: Annotated[bool, ACCEPT_PORTS_OPTION] = False,
) -> None:
    """Is it a policy that a node can run? Warnings go to stderr; ends with 1 when it is not."""
    # The compiler of policies brings Numba along: half a second that no other command of this file pays.
    from everwall.policy.compile import compile_policy
    from everwall.policy.files import read_policy_file

    try:
        found = read_policy_file(file, accept_ports)
        compile_policy(found)
    except ConfigError as error:
        fail(str(error))
    _warn(found.warnings)
    typer.echo(found.summary)


@group.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="A configuration of PAN-OS: the bootstrap.xml of a package.")],
    output: Annotated[
        Path | None,
        typer.Option(help="Write the policy there; a file that is there stays.  [default: stdout]"),
    ] = None,
    accept_ports: Annotated[bool, ACCEPT_PORTS_OPTION] = False,
    leave_out: Annotated[
        list[str] | None,
        typer.Option(metavar="RULE", help="Do without this rule, whatever it would refuse.  [repeatable]"),
    ] = None,
    associate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="VPCE@INTERFACE",
            help="An endpoint's interface, as in aws-gwlb-associate-vpce: its zone is that one's.  [repeatable]",
        ),
    ] = None,
) -> None:
    """Write the policy of a PAN-OS configuration as YAML.

    A rule that cannot be matched as it is written is not loaded, and named on stderr with the reason. Ends with 1 where
    that would open what the rule refuses.
    """
    from everwall.policy.panos import load_panos

    try:
        found = load_panos(file, None, accept_ports, leave_out or (), _endpoints(associate or ()))
    except ConfigError as error:
        fail(str(error))
    _warn(found.policy.warnings)
    typer.echo(f"rules loaded: {len(found.policy.rules)}, not loaded: {len(found.left_out)}", err=True)
    if output is None:
        typer.echo(found.yaml(), nl=False)
        return
    try:
        with output.open("x", encoding="utf-8") as written:
            written.write(found.yaml())
    except OSError as error:
        fail(f"{output}: {error.strerror or error}")


def _endpoints(associated: Iterable[str]) -> dict[str, list[str]]:
    from everwall.policy.words import ENDPOINT_EXPECTED, parse_endpoint

    found: dict[str, list[str]] = {}
    for text in associated:
        endpoint, at, interface = text.partition("@")
        if not at or not interface or parse_endpoint(endpoint) is None:
            fail(f"--associate {text}: expected {ENDPOINT_EXPECTED}, then @ and an interface")
        found.setdefault(interface, []).append(endpoint)
    return found


def _warn(warnings: Iterable[str]) -> None:
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)
