"""The ``everwall`` command: one file per sub-command, and only the one that was asked for is loaded.

A command's file is ``cli/<name>.py`` (dashes become underscores) with a function ``command`` whose signature
is its options and whose docstring is its help; where one name has several commands, with a Typer ``group`` of
them. Loading all of them would compile and import half a second worth of code to print a list.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Annotated

import typer

from everwall import __version__

COMMANDS = {
    "bootstrap": "Look over a bootstrap package, or begin one.",
    "firewall": "Run one firewall node.",
    "gwlb": "Run a gateway load balancer, where there is none.",
    "doctor": "Is the store, the load balancer and the node set up right?",
    "lab": "A whole cluster on this machine, with real connections and real failures.",
    "policy": "Look over a policy, and bring one along.",
    "replay": "What would the firewall do with this capture?",
    "resiliency": "Switch session resiliency of a running firewall on or off.",
    "show": "Look into a running firewall or load balancer.",
    "size": "How much memory do sessions need?",
    "store": "Change the session store under a running cluster.",
    "warm": "Compile everything once, so that nodes start at once.",
}


def application(wanted: str | None) -> typer.Typer:
    """The command-line application with ``wanted`` loaded and all others as names only."""
    app = typer.Typer(
        help="A session-resilient stateful firewall cluster for gateway load balancers.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def everwall(
        version: Annotated[
            bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
        ] = False,
    ) -> None:
        pass

    for name, summary in COMMANDS.items():
        module = f"everwall.cli.{name.replace('-', '_')}"
        if name == wanted:
            loaded = import_module(module)
            if hasattr(loaded, "group"):
                app.add_typer(loaded.group, name=name, help=summary)
            else:
                app.command(name, short_help=summary)(loaded.command)
        elif find_spec(module) is not None:
            app.command(name, help=summary)(_not_loaded)
    return app


def main() -> None:
    """Entry point of the console script."""
    words = [word for word in sys.argv[1:] if not word.startswith("-")]
    wanted = words[0] if words and words[0] in COMMANDS else None
    application(wanted)(prog_name="everwall")


def _version(value: bool) -> None:
    if value:
        typer.echo(f"everwall {__version__}")
        raise typer.Exit


def _not_loaded() -> None:
    raise AssertionError("the command line names its command first")
