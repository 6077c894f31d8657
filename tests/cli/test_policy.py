"""``everwall policy``: what an operator sees of a policy before any node runs it."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from everwall.cli.main import application
from everwall.policy.rules import read_policy
from tests.policy.vendor import config, members, rule

INSPECTION = Path(__file__).parents[1] / "policy" / "files" / "inspection.xml"
RULE = "rules:\n- {name: a, source: 10.0.0.1, destination: any, service: tcp/80, action: allow}\n"


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(application("policy"), ["policy", *map(str, words)])


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(RULE)
    return path


def test_check_says_what_the_policy_is(policy: Path) -> None:
    done = run("check", policy)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout == f"policy {policy}: 1 rule, intrazone-default deny, interzone-default deny\n"


def test_check_warns_and_goes_on(policy: Path) -> None:
    policy.write_text(RULE + RULE.partition("\n")[2].replace("name: a", "name: b"))
    done = run("check", policy)
    assert done.exit_code == 0
    assert done.stderr == (
        f"warning: {policy}:3: rule b is never reached: rule a (line 2) matches all that it would\n"
    )


def test_check_ends_with_1_at_the_first_wrong_line(policy: Path) -> None:
    policy.write_text(RULE.replace("tcp/80", "tcp/99999"))
    done = run("check", policy)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == (
        f"everwall: {policy}:2:58: rules[1].service: 'tcp/99999': expected ports up to 65535\n"
    )


def test_check_refuses_what_cannot_be_matched_unless_ports_may_stand_for_it(policy: Path) -> None:
    policy.write_text(RULE.replace("service: tcp/80", "application: ssl, service: any"))
    done = run("check", policy)
    assert done.exit_code == 1
    assert "only ports can be matched so far" in done.stderr
    done = run("check", policy, "--accept-ports-for-applications")
    assert done.exit_code == 0
    assert "matched by ports, not by what it names (ssl)" in done.stderr


def test_import_writes_a_policy_that_reads_back(tmp_path: Path) -> None:
    target = tmp_path / "policy.yaml"
    done = run(
        "import", INSPECTION, "--output", target, "--associate", "vpce-0123456789abcdef@ethernet1/1.10"
    )
    assert done.exit_code == 0, done.output
    assert done.stderr.endswith("rules loaded: 6, not loaded: 0\n")
    found = read_policy(target)
    assert len(found.rules) == 6
    assert {zone.name: zone.endpoints for zone in found.zones}["web"] == (0x0123456789ABCDEF,)
    again = run("import", INSPECTION, "--output", target)
    assert again.exit_code == 1
    assert f"{target}: File exists" in again.stderr
    assert run("import", INSPECTION).stdout.startswith("# Made from inspection.xml.")


def test_import_names_what_it_does_not_load(tmp_path: Path) -> None:
    source = tmp_path / "bootstrap.xml"
    source.write_text(config(rule(application="ssl"), rule("b", source="192.0.2.1")))
    done = run("import", source)
    assert done.exit_code == 0
    assert f"warning: {source}:2: rule a is not loaded: it names applications (ssl)" in done.stderr
    assert "rules loaded: 1, not loaded: 1" in done.stderr
    assert f"#   {source}:2: rule a is not loaded" in done.stdout, "whoever reads the file later sees it too"
    assert "tcp/443" in run("import", source, "--accept-ports-for-applications").stdout


def test_import_stops_where_it_would_open_something(tmp_path: Path) -> None:
    source = tmp_path / "bootstrap.xml"
    source.write_text(config(rule(action="deny", more=members("category", "gambling")), rule("b")))
    done = run("import", source)
    assert (done.exit_code, done.stdout) == (1, "")
    assert "without it rule b (line 3) would allow what it refuses" in done.stderr
    assert run("import", source, "--leave-out", "a").exit_code == 0


@pytest.mark.parametrize("text", ["vpce-12@ethernet1/1", "vpce-0123456789abcdef", "17@"])
def test_an_association_has_an_endpoint_and_an_interface(text: str) -> None:
    done = run("import", INSPECTION, "--associate", text)
    assert done.exit_code == 1
    assert "--associate" in done.stderr
