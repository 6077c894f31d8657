"""``everwall bootstrap``: what a node would do, before one has to; and a package to begin with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from everwall.bootstrap.load import load_bootstrap
from everwall.cli.main import application

SECRET = "c0ffee5a17b3449d8e60f1a2b3c4d5e6f708192a3b4c5d6e7f80917263544536"
EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"


@pytest.fixture(autouse=True)
def no_secret_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EVERWALL_CLUSTER_SECRET", "EVERWALL_CLUSTER_SECRET_FILE", "EVERWALL_CLUSTER_SECRET_ID"):
        monkeypatch.delenv(name, raising=False)


def run(*words: str | Path, env: dict[str, str] | None = None) -> Any:
    return CliRunner().invoke(application("bootstrap"), ["bootstrap", *map(str, words)], env=env)


def test_check_says_what_would_happen() -> None:
    result = run("check", EXAMPLES / "everwall")
    assert result.exit_code == 0, result.output
    said = {line.split("  ")[0]: line for line in result.output.splitlines()}
    assert said["hostname"].endswith("firewall-a")
    assert "data the first, management the second (mgmt-interface-swap is on)" in said["interfaces"]
    assert said["endpoint"].endswith("vpce-0a1b2c3d4e5f60718 on ethernet1/1.10, zone web")
    assert "held back: no everwall-cluster-secret" in said["resiliency"]
    assert result.output.splitlines()[-1].startswith("A node would start; session resiliency is held back")


def test_check_shows_no_secret_and_takes_it_from_the_environment() -> None:
    result = run("check", EXAMPLES / "everwall", env={"EVERWALL_CLUSTER_SECRET": SECRET})
    assert "A node would start; session resiliency is on" in result.output
    for secret in (SECRET, "an-example-of-a-token-1"):
        assert secret not in result.output


def test_every_word_of_a_vendor_package_is_spoken_of() -> None:
    result = run("check", EXAMPLES / "vm-series")
    assert result.exit_code == 0, result.output
    for key in ("dhcp-send-hostname", "dhcp-send-client-id"):
        assert f"{key}: recognised, not used by Everwall, because" in result.output
    assert "note: " in result.output
    assert "license/authcodes: not used, because Everwall needs no licence" in result.output


@pytest.mark.parametrize("as_json", [False, True])
def test_what_would_not_start_ends_with_1_and_the_name_of_the_error(tmp_path: Path, as_json: bool) -> None:
    path = tmp_path / "init-cfg.txt"
    path.write_text("hostname=a\ntype=dhcp\n")
    result = run("check", path, *(["--json"] if as_json else []))
    assert result.exit_code == 1
    name = "Bad or no parameters for mandatory networking information in the bootstrap configuration file"
    if as_json:
        assert json.loads(result.output) == {
            "ok": False,
            "error": {
                "name": name,
                "file": str(path),
                "line": 2,
                "key": "type",
                "value": "dhcp",
                "expected": "static or dhcp-client",
            },
        }
    else:
        assert result.output == (
            f"everwall: {name}: {path}:2: type: 'dhcp': expected static or dhcp-client\n"
        )


def test_a_policy_that_cannot_be_used_is_found_as_well(tmp_path: Path) -> None:
    (tmp_path / "init-cfg.txt").write_text("everwall-policy=policy.yaml\n")
    (tmp_path / "policy.yaml").write_text("rules: 5\n")
    result = run("check", tmp_path / "init-cfg.txt")
    assert result.exit_code == 1
    assert "policy.yaml:1" in result.output


def test_check_as_json(tmp_path: Path) -> None:
    body = json.loads(run("check", EXAMPLES / "everwall", "--json").output)
    assert body["ok"]
    assert ["hostname", "firewall-a"] in body["facts"]


def test_init_writes_a_package_that_boots_and_only_its_owner_can_read(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    result = run("init", folder)
    assert result.exit_code == 0, result.output
    names = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    assert sorted(names) == [
        "config",
        "config/cluster-secret",
        "config/init-cfg.txt",
        "config/policy.yaml",
        "content",
        "license",
        "software",
    ]
    for name, path in names.items():
        if name.startswith("config/"):
            assert path.stat().st_mode & 0o777 == 0o600, name
    assert names["config"].stat().st_mode & 0o077 == 0
    bootstrap = load_bootstrap(folder)
    assert bootstrap.warnings == ()
    assert bootstrap.config.cluster_secret is not None
    secret = names["config/cluster-secret"].read_text().strip()
    assert len(bootstrap.config.cluster_secret.get_secret_value()) >= 32
    assert secret not in result.output
    checked = run("check", folder)
    assert checked.exit_code == 0, checked.output
    assert secret not in checked.output


def test_each_package_has_a_secret_of_its_own(tmp_path: Path) -> None:
    for name in "ab":
        run("init", tmp_path / name)
    first, second = ((tmp_path / name / "config" / "cluster-secret").read_text() for name in "ab")
    assert first != second


def test_init_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    result = run("init", tmp_path)
    assert result.exit_code == 1
    assert "nothing is overwritten" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_rules_that_name_applications_are_taken_by_their_ports_when_that_is_accepted(tmp_path: Path) -> None:
    package = tmp_path / "package"
    shutil.copytree(EXAMPLES / "vm-series", package)
    xml = package / "config" / "bootstrap.xml"
    text = xml.read_text()
    for old, new in (
        ("<application><member>any", "<application><member>ssh"),
        ("tcp-web</m", "application-default</m"),
    ):
        assert old in text
        text = text.replace(old, new, 1)
    xml.write_text(text)
    strict, accepted = run("check", package), run("check", package, "--accept-ports-for-applications")
    assert (strict.exit_code, accepted.exit_code) == (0, 0), strict.output
    assert "bootstrap.xml: 1 rule, intrazone-default deny" in strict.output
    assert "bootstrap.xml: 2 rules, intrazone-default deny" in accepted.output
