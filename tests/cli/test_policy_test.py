"""`everwall policy test`: the deciding rule and the nearest ones before it, and questions that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from everwall.cli.main import application

POLICY = """
zones:
  web: {endpoints: 1}
  back: {endpoints: 2}
rules:
  - {name: ssh, source: 10.0.0.0/8, destination: any, service: tcp/22, action: allow}
  - {name: site, from: web, to: web, source: any, destination: 10.1.0.0/16, service: tcp/443, action: allow}
  - {name: six, source: "2001:db8::/32", destination: any, service: [icmp, udp/53], action: allow}
  - {name: all, source: 10.0.0.0/8, destination: any, service: any, action: deny}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    return path


def said(*arguments: object, status: int = 0) -> str:
    result = CliRunner().invoke(application("policy"), ["policy", "test", *map(str, arguments)])
    assert result.exit_code == status, result.output
    return result.output


def test_the_deciding_rule_and_why_not_those_before_it(file: Path) -> None:
    told = said(file, "--from", "web", "--src", "10.0.0.1", "--dst", "10.2.0.1", "--dport", 443)
    assert told.splitlines() == [
        "tcp 10.0.0.1:49152 to 10.2.0.1:443, from zone web to zone web",
        f"deny, by rule all ({file}:9)",
        "told: RST to the client",
        "3 rules before it do not match:",
        "  ssh (line 6): not its service",
        "  site (line 7): not its destination",
        "  six (line 8): not its source, service",
    ]


def test_the_first_rule_and_a_default_rule(file: Path) -> None:
    told = said(file, "--from", "back", "--src", "10.0.0.1", "--dst", "10.2.0.1", "--dport", 22)
    assert told.splitlines()[1:] == [f"allow, by rule ssh ({file}:6)"]
    told = said(
        file, "--from", "web", "--to", "back", "--src", "192.0.2.1", "--dst", "10.1.0.1", "--dport", 443
    )
    assert told.splitlines()[1:3] == ["deny, by rule interzone-default", "told: nothing"]
    assert "  site (line 7): not its to" in told.splitlines()


def test_ipv6_and_icmp(file: Path) -> None:
    told = said(file, "--from", "web", "--src", "2001:db8::1", "--dst", "2001:db8::2", "--proto", "icmp")
    assert told.splitlines()[:2] == [
        "icmp 2001:db8::1 to 2001:db8::2, from zone web to zone web",
        f"allow, by rule six ({file}:8)",
    ]
    arguments = ("--src", "2001:db8::1", "--dst", "2001:db8::2", "--proto", "17", "--dport", 53)
    assert "udp [2001:db8::1]:49152 to [2001:db8::2]:53" in said(file, "--from", "web", *arguments)


def test_json_and_an_application(file: Path) -> None:
    question = (file, "--from", "web", "--src", "10.0.0.1", "--dst", "10.1.0.1", "--dport", 443)
    assert json.loads(said(*question, "--json")) == {
        "rule": "site",
        "action": "allow",
        "line": 7,
        "file": str(file),
        "before": 1,
        "nearest": [{"rule": "ssh", "line": 6, "does_not_match": ["service"]}],
        "told": None,
    }
    assert "application ssl: rules are matched by addresses and ports" in said(*question, "--app", "ssl")


CLIENT, SERVER, BOTH = "RST to the client", "RST to the server", "RST to the client and RST to the server"
ICMP = "ICMP unreachable to the client"


@pytest.mark.parametrize(
    ("action", "tcp", "udp"),
    [
        ("drop", "nothing", "nothing"),
        ("deny", CLIENT, ICMP),
        ("reset-client", CLIENT, "nothing"),
        ("reset-server", f"nothing; of a live session: {SERVER}", "nothing"),
        ("reset-both", f"{CLIENT}; of a live session: {BOTH}", "nothing"),
        ("drop, icmp-unreachable: yes", ICMP, ICMP),
        ("reset-server, icmp-unreachable: yes", f"nothing; of a live session: {SERVER}", ICMP),
    ],
)
def test_what_the_ends_are_told(tmp_path: Path, action: str, tcp: str, udp: str) -> None:
    """The table of docs/policy.md."""
    path = tmp_path / "policy.yaml"
    path.write_text(f"rules: [{{name: a, source: any, destination: any, service: any, action: {action}}}]")
    ends = ("--src", "10.0.0.1", "--dst", "10.0.0.2", "--dport", 53)
    assert said(path, *ends).splitlines()[2] == f"told: {tcp}"
    assert said(path, *ends, "--proto", "udp").splitlines()[2] == f"told: {udp}"


@pytest.mark.parametrize(
    "address", ["0.0.0.1", "127.0.0.1", "224.0.0.1", "255.255.255.255", "::", "::1", "ff02::1"]
)
def test_nobody_is_told_of_what_does_not_go_to_one_host(tmp_path: Path, address: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("rules: [{name: a, source: any, destination: any, service: any, action: reset-both}]")
    source = "2001:db8::1" if ":" in address else "10.0.0.1"
    told = json.loads(said(path, "--src", source, "--dst", address, "--dport", 53, "--json"))["told"]
    assert told == {"new": {"client": None, "server": None}, "live": {"client": None, "server": None}}


def test_an_application_gives_protocol_and_port(file: Path) -> None:
    told = said(file, "--from", "web", "--src", "10.0.0.1", "--dst", "10.1.0.1", "--app", "ssh").splitlines()
    assert told[0] == "tcp 10.0.0.1:49152 to 10.1.0.1:22, from zone web to zone web"
    assert told[2] == f"allow, by rule ssh ({file}:6)"
    told = said(
        file, "--from", "web", "--src", "2001:db8::1", "--dst", "2001:db8::2", "--app", "ping"
    ).splitlines()
    assert told[2] == f"allow, by rule six ({file}:8)"


def test_of_many_rules_the_nearest_are_shown(tmp_path: Path) -> None:
    rules = "".join(
        f"  - {{name: r{k}, source: 192.0.2.{k}, destination: any, service: tcp/{k}, action: allow}}\n"
        for k in range(1, 100)
    )
    path = tmp_path / "many.yaml"
    path.write_text("rules:\n" + rules)
    told = said(path, "--src", "192.0.2.7", "--dst", "10.0.0.1", "--dport", 80).splitlines()
    assert "from zone data to zone data" in told[0], "without mapped endpoints there is one zone"
    assert told[3] == "99 rules before it do not match; the nearest 5:"
    assert [line.split()[0] for line in told[4:]] == ["r7", "r80", "r97", "r98", "r99"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (
            ["--src", "10.0.0.1", "--dst", "10.0.0.2", "--dport", 1],
            "--from: expected one of the zones web, back",
        ),
        (["--from", "wep", "--src", "10.0.0.1", "--dst", "10.0.0.2", "--dport", 1], "did you mean web?"),
        (
            ["--from", "web", "--src", "10.0.0", "--dst", "10.0.0.2", "--dport", 1],
            "--src: '10.0.0': expected an",
        ),
        (["--from", "web", "--src", "::1", "--dst", "10.0.0.2", "--dport", 1], "of one family"),
        (["--from", "web", "--src", "10.0.0.1", "--dst", "10.0.0.2"], "--dport: tcp has ports"),
        (["--from", "web", "--src", "10.0.0.1", "--dst", "10.0.0.2", "--proto", "tpc"], "did you mean tcp?"),
        (["--from", "web", "--src", "10.0.0.1", "--dst", "10.0.0.2", "--app", "sssh"], "did you mean ssh?"),
    ],
)
def test_a_wrong_question_is_answered_with_what_was_expected(
    file: Path, arguments: list[object], why: str
) -> None:
    assert why in said(file, *arguments, status=1)


def test_a_wrong_policy_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        "rules:\n  - {name: a, source: any, destination: any, service: tcp/99999, action: allow}\n"
    )
    told = said(path, "--src", "10.0.0.1", "--dst", "10.0.0.2", "--dport", 1, status=1)
    assert f"{path}:2:" in told
    assert "expected ports up to 65535" in told
