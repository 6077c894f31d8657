"""A node's file, judged."""

from __future__ import annotations

import hashlib

from everwall.bootstrap.parse import parse_init_cfg
from everwall.doctor import node_checks
from everwall.doctor.findings import Finding, Level
from everwall.limits import LB_IDLE_TCP_S

GOOD = f"""plugin-op-commands=set-sess-ress:True,aws-gwlb-inspect:enable
redis-endpoint=store.example:6379
everwall-cluster-secret={hashlib.sha256(b"a secret of tests").hexdigest()}
everwall-policy=POLICY
"""


def seen(text: str, tmp_path) -> dict[str, Finding]:
    policy = tmp_path / "policy.yaml"
    policy.write_text("")
    cfg, warnings = parse_init_cfg(text.replace("POLICY", str(policy)))
    return {finding.check: finding for finding in node_checks.findings(cfg, warnings)}


def test_a_good_file_is_ok(tmp_path) -> None:
    assert {finding.level for finding in seen(GOOD, tmp_path).values()} == {Level.OK}


def test_without_a_secret_nothing_is_restored(tmp_path) -> None:
    found = seen("\n".join(line for line in GOOD.splitlines() if "secret" not in line), tmp_path)
    assert found["cluster-secret"].level is Level.ERROR
    assert found["cluster-secret"].text.endswith("restores none; resiliency is held back")
    assert "resiliency" not in found, "said once"


def test_resiliency_that_is_off_is_an_error(tmp_path) -> None:
    found = seen(GOOD.replace("set-sess-ress:True", "set-sess-ress:False"), tmp_path)
    assert found["resiliency"].level is Level.ERROR


def test_geneve_refused_and_policy_missing_are_said(tmp_path) -> None:
    text = GOOD.replace("aws-gwlb-inspect:enable", "aws-gwlb-inspect:disable").replace(
        "everwall-policy=POLICY", ""
    )
    found = seen(text, tmp_path)
    assert found["geneve"].level is Level.ERROR
    assert found["policy"].level is Level.WARNING


def test_what_the_file_is_warned_about_is_a_finding(tmp_path) -> None:
    found = seen(GOOD + "everwall-polcy=x\n", tmp_path)
    assert found["init-cfg"].level is Level.WARNING
    assert "did you mean" in found["init-cfg"].text


def test_a_load_balancer_that_forgets_first_wants_keepalives_and_one_that_forgets_later_is_a_warning() -> (
    None
):
    def tcp(seconds: int) -> Finding:
        return node_checks.idle(seconds)[0]

    assert tcp(LB_IDLE_TCP_S).level is Level.OK
    assert "keepalives below 350 s" in tcp(LB_IDLE_TCP_S).text
    assert tcp(node_checks.TCP_IDLE_S).level is Level.OK
    assert tcp(6000).level is Level.WARNING
    assert "non-syn-tcp" in tcp(6000).text


def test_the_policys_own_time_outs_are_judged(tmp_path) -> None:
    def told(text: str, balancer_s: int = LB_IDLE_TCP_S) -> dict[str, Finding]:
        (tmp_path / "policy.yaml").write_text(text)
        cfg, _ = parse_init_cfg(f"everwall-policy={tmp_path / 'policy.yaml'}")
        settings, unread = node_checks.settings_of(cfg)
        return {each.check: each for each in [*unread, *node_checks.idle(balancer_s, settings)]}

    short = told("sessions: {timeout-tcp: 60, timeout-udp: 90}")
    assert short["idle-tcp"].level is Level.WARNING
    assert short["idle-tcp"].advice == "set tcp.idle_timeout.seconds to 60 or less"
    assert "UDP 90 s here" in short["idle-udp"].text
    long = told("sessions: {timeout-tcp: 86400, timeout-udp: 7200}")
    assert long["idle-tcp"].level is Level.OK
    assert "stored-tcp" not in long, "the load balancer forgets before the store does"
    assert "not for 7200 s" in long["stored-udp"].text
    assert told("sessions: {timeout-tcp: 86400}", 6000)["stored-tcp"].level is Level.WARNING
    assert told("sessions: {timeout-tpc: 5}")["policy"].level is Level.ERROR
