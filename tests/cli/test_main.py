"""The front door: help without loading anything, and one command loaded at a time."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest
from typer.testing import CliRunner

from everwall import __version__
from everwall.cli.main import COMMANDS, application

THERE = [name for name in COMMANDS if find_spec(f"everwall.cli.{name}") is not None]


def test_help_names_every_command() -> None:
    done = CliRunner().invoke(application(None), ["--help"])
    assert done.exit_code == 0
    for name in THERE:
        assert name in done.stdout


def test_help_loads_no_compiler() -> None:
    code = "import sys; from everwall.cli.main import application; application(None); print('numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("name", THERE)
def test_every_command_explains_itself(name: str) -> None:
    done = CliRunner().invoke(application(name), [name, "--help"])
    assert done.exit_code == 0
    assert "Usage" in done.stdout


def test_the_version_is_the_packages() -> None:
    done = CliRunner().invoke(application(None), ["--version"])
    assert done.stdout.strip() == f"everwall {__version__}"


def test_an_unknown_command_is_a_usage_error() -> None:
    assert CliRunner().invoke(application(None), ["walk"]).exit_code == 2
