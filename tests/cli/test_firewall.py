"""``everwall firewall``: what keeps a node from starting is one line, not a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from everwall.cli import firewall
from everwall.cli.main import application


def test_a_traffic_log_that_cannot_be_written_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "init-cfg.txt"
    config.write_text("hostname=fw\n")
    missing = tmp_path / "missing" / "traffic.log"

    def node(*_: object) -> None:
        missing.open("a")

    monkeypatch.setattr(firewall, "warm", lambda *_, **__: None)
    monkeypatch.setattr(firewall, "Node", node)
    result = CliRunner().invoke(application("firewall"), ["firewall", "--bootstrap", str(config)])
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert str(missing) in result.output
