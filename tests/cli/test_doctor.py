"""``everwall doctor``: where its facts come from, its lines, its JSON and its exit code."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from everwall.cli.main import application
from everwall.doctor import balancer_facts
from tests import needs
from tests.doctor.test_balancer import ARN, Client
from tests.redis_server import PASSWORD, RedisServer


def run(*arguments: str) -> Any:
    return CliRunner().invoke(application("doctor"), ["doctor", *arguments])


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    needs.binary("redis-server")
    started = RedisServer()
    try:
        yield started.start()
    finally:
        started.close()


def init_cfg(directory: Path, server: RedisServer, *lines: str) -> Path:
    path = directory / "init-cfg.txt"
    certificate = base64.b64encode(server.ca_pem).decode()
    path.write_text(
        "\n".join(
            [
                "plugin-op-commands=set-sess-ress:True,aws-gwlb-inspect:enable",
                f"redis-endpoint=localhost:{server.port}",
                f"redis-auth={PASSWORD}",
                f"redis-certificate={certificate}",
                *lines,
            ]
        )
        + "\n"
    )
    return path


def test_a_store_that_is_all_right_ends_with_0(server: RedisServer, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text(PASSWORD + "\n")
    authority = str(server.directory / "ca.pem")
    endpoint = f"localhost:{server.port}"
    done = run(
        "--redis-endpoint", endpoint, "--redis-auth-file", str(password), "--redis-certificate", authority
    )
    assert done.exit_code == 0, done.output
    assert "docs/failover.md" in done.stdout
    assert "→" in done.stdout, "the missing replica comes with what to do"
    assert done.stdout.rstrip().endswith("0 error")
    assert PASSWORD not in done.output


def test_an_error_ends_with_1_and_json_holds_the_same(server: RedisServer) -> None:
    endpoint, authority = f"localhost:{server.port}", base64.b64encode(server.ca_pem).decode()
    done = run(
        "--redis-endpoint", endpoint, "--redis-auth", "wrong", "--redis-certificate", authority, "--json"
    )
    assert done.exit_code == 1
    body = json.loads(done.stdout)
    assert body["ok"] is False
    assert body["count"]["error"] == 1
    assert body["findings"][-1]["check"] == "auth"
    assert set(body["findings"][-1]) == {"level", "check", "text", "advice"}


def test_the_nodes_own_file_says_all_that_is_needed(server: RedisServer, tmp_path: Path) -> None:
    done = run("--init-cfg", str(init_cfg(tmp_path, server)), "--json")
    found = {finding["check"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert found["tls"]["level"] == "ok"
    assert found["auth"]["level"] == "ok"
    assert found["room"]["text"].startswith("100,000 sessions need"), "as many as a node has room for"
    assert found["cluster-secret"]["level"] == "error"
    assert found["idle-tcp"]["text"].startswith("established TCP 3600 s here, 350 s")
    assert done.exit_code == 1


def test_options_go_before_the_file(server: RedisServer, tmp_path: Path) -> None:
    path = init_cfg(tmp_path, server)
    done = run("--init-cfg", str(path), "--redis-endpoint", "localhost:1", "--json")
    found = {finding["check"]: finding["level"] for finding in json.loads(done.stdout)["findings"]}
    assert found["connect"] == "error"
    done = run("--init-cfg", str(path), "--sessions", "1000", "--firewalls", "3", "--json")
    found = {finding["check"]: finding["text"] for finding in json.loads(done.stdout)["findings"]}
    assert found["room"].startswith("3,000 sessions need")


def test_a_target_group_alone_and_with_a_node(
    server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client()
    monkeypatch.setattr(balancer_facts, "client", lambda arn: client)
    done = run("--target-group", ARN)
    assert done.exit_code == 0, done.output
    client.listener["tcp.idle_timeout.seconds"] = "600"
    done = run(
        "--target-group",
        ARN,
        "--init-cfg",
        str(init_cfg(tmp_path, server, "everwall-health-port=8080")),
        "--json",
    )
    findings = json.loads(done.stdout)["findings"]
    idle = [finding["text"] for finding in findings if finding["check"] == "idle-tcp"]
    assert len(idle) == 1, "the listener's own value, once"
    assert "600 s at the load balancer" in idle[0]
    assert any(finding["check"] == "health-port" for finding in findings)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "nothing to look at"),
        (("--redis-endpoint", "store.example"), "expected host:port"),
        (("--redis-endpoint", ""), "--redis-endpoint: expected host:port"),
        (("--redis-endpoint", "localhost:1", "--redis-certificate", "no such file"), "--redis-certificate"),
        (("--redis-endpoint", "localhost:1", "--redis-certificate", "AAAA"), "CA certificate cannot be read"),
        (("--redis-endpoint", "localhost:1", "--redis-auth-file", "missing"), "missing: expected a readable"),
        (("--redis-endpoint", "localhost:1", "--sessions", "0"), "sessions: 0: expected 1 to"),
        (("--target-group", "firewalls"), "no target group"),
        (("--init-cfg", "missing"), "missing: expected a readable file"),
    ],
)
def test_what_cannot_be_looked_at_is_one_line(arguments: tuple[str, ...], text: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 1
    assert isinstance(done.exception, SystemExit)
    assert text in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_password_is_given_once(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("a\n")
    done = run(
        "--redis-endpoint", "a:1", "--redis-auth", "b", "--redis-auth-file", str(tmp_path / "password")
    )
    assert "either this or --redis-auth" in done.stderr
    (tmp_path / "password").write_text("a\nb\n")
    done = run("--redis-endpoint", "a:1", "--redis-auth-file", str(tmp_path / "password"))
    assert "one line with the password" in done.stderr
