"""A target group as AWS describes it, judged; the client is a small stand-in."""

from __future__ import annotations

from typing import Any

import pytest

from everwall.doctor import balancer_checks, balancer_facts
from everwall.doctor.balancer_facts import BalancerError
from everwall.doctor.findings import Finding, Level

ARN = "arn:aws:elasticloadbalancing:eu-west-1:123456789012:targetgroup/firewalls/0123456789abcdef"
OTHER = ARN.replace("firewalls", "others")


class Client:
    """Answers like boto3's elbv2 client; everything is as recommended until a test changes it."""

    def __init__(self) -> None:
        self.group: dict[str, Any] = {
            "TargetGroupArn": ARN,
            "Protocol": "GENEVE",
            "Port": 6081,
            "HealthCheckProtocol": "HTTP",
            "HealthCheckPort": "80",
            "HealthCheckIntervalSeconds": 5,
            "HealthCheckTimeoutSeconds": 2,
            "HealthyThresholdCount": 2,
            "UnhealthyThresholdCount": 2,
            "LoadBalancerArns": ["arn:aws:balancer"],
        }
        self.attributes = {
            "target_failover.on_unhealthy": "rebalance",
            "target_failover.on_deregistration": "rebalance",
            "deregistration_delay.timeout_seconds": "60",
            "stickiness.enabled": "false",
        }
        self.balancer = {"load_balancing.cross_zone.enabled": "true"}
        self.listener = {"tcp.idle_timeout.seconds": "350", "send_tcp_reset.on_idle_timeout.enabled": "false"}
        self.targets = [("healthy", "eu-west-1a"), ("healthy", "eu-west-1b")]

    def describe_target_groups(self, TargetGroupArns: list[str]) -> dict[str, Any]:
        assert TargetGroupArns == [ARN]
        return {"TargetGroups": [self.group]}

    def describe_target_group_attributes(self, TargetGroupArn: str) -> dict[str, Any]:
        return _attributes(self.attributes)

    def describe_target_health(self, TargetGroupArn: str) -> dict[str, Any]:
        each = [
            {"Target": {"Id": "i", "AvailabilityZone": zone}, "TargetHealth": {"State": state}}
            for state, zone in self.targets
        ]
        return {"TargetHealthDescriptions": each}

    def describe_load_balancer_attributes(self, LoadBalancerArn: str) -> dict[str, Any]:
        return _attributes(self.balancer)

    def describe_listeners(self, LoadBalancerArn: str) -> dict[str, Any]:
        return {
            "Listeners": [
                {"ListenerArn": "other", "DefaultActions": [{"Type": "forward", "TargetGroupArn": OTHER}]},
                {
                    "ListenerArn": "ours",
                    "DefaultActions": [
                        {"Type": "forward", "ForwardConfig": {"TargetGroups": [{"TargetGroupArn": ARN}]}}
                    ],
                },
            ]
        }

    def describe_listener_attributes(self, ListenerArn: str) -> dict[str, Any]:
        assert ListenerArn == "ours", "only the listener that sends to this group counts"
        return _attributes(self.listener)


def _attributes(pairs: dict[str, str]) -> dict[str, Any]:
    return {"Attributes": [{"Key": key, "Value": value} for key, value in pairs.items()]}


def seen(client: Client, health_port: int | None = 80) -> dict[str, Finding]:
    facts = balancer_facts.collect(client, ARN)
    return {finding.check: finding for finding in balancer_checks.findings(facts, health_port)}


@pytest.fixture
def client() -> Client:
    return Client()


def test_what_is_recommended_is_ok(client: Client) -> None:
    found = seen(client)
    assert {finding.level for finding in found.values()} == {Level.OK}
    assert {"target-failover", "tcp-reset", "cross-zone", "idle-tcp", "health-check"} <= found.keys()


@pytest.mark.parametrize(
    ("unhealthy", "deregistration", "text"),
    [
        ("no_rebalance", "no_rebalance", "stay with a dead firewall"),
        ("rebalance", "no_rebalance", "they differ"),
        (None, None, "stay with a dead firewall"),  # AWS's default
    ],
)
def test_failover_has_to_rebalance_on_both(
    client: Client, unhealthy: str | None, deregistration: str | None, text: str
) -> None:
    for name, value in (("on_unhealthy", unhealthy), ("on_deregistration", deregistration)):
        client.attributes.pop(f"target_failover.{name}")
        if value is not None:
            client.attributes[f"target_failover.{name}"] = value
    found = seen(client)["target-failover"]
    assert found.level is Level.ERROR
    assert text in found.text


def test_resets_of_failover_are_an_error_and_those_of_idle_flows_a_warning(client: Client) -> None:
    client.listener["send_tcp_reset.on_idle_timeout.enabled"] = "true"
    assert seen(client)["tcp-reset"].level is Level.WARNING
    client.attributes["send_tcp_reset.on_unhealthy.enabled"] = "true"
    found = seen(client)["tcp-reset"]
    assert found.level is Level.ERROR
    assert "exclude" in found.advice


def test_coarse_stickiness_and_a_long_delay_are_warnings(client: Client) -> None:
    client.attributes |= {"stickiness.enabled": "true", "stickiness.type": "source_ip_dest_ip"}
    client.attributes["deregistration_delay.timeout_seconds"] = "300"
    found = seen(client)
    assert found["stickiness"].level is Level.WARNING
    assert "source_ip_dest_ip" in found["stickiness"].text
    assert found["deregistration-delay"].level is Level.WARNING


def test_slow_health_checks_say_how_slow(client: Client) -> None:
    client.group |= {
        "HealthCheckIntervalSeconds": 10,
        "UnhealthyThresholdCount": 3,
        "HealthCheckTimeoutSeconds": 5,
    }
    found = seen(client)["health-check"]
    assert found.level is Level.WARNING
    assert "after about 35 s" in found.text


def test_tcp_checks_are_a_warning_and_another_port_an_error(client: Client) -> None:
    client.group |= {"HealthCheckProtocol": "TCP", "HealthCheckPort": "8080"}
    found = seen(client)
    assert found["health-protocol"].level is Level.WARNING
    assert found["health-port"].level is Level.ERROR
    assert "health-port" not in seen(client, health_port=None)


def test_zones_without_a_second_firewall_want_cross_zone(client: Client) -> None:
    client.balancer["load_balancing.cross_zone.enabled"] = "false"
    found = seen(client)["cross-zone"]
    assert found.level is Level.WARNING
    assert "eu-west-1a, eu-west-1b" in found.text
    client.targets = client.targets * 2
    assert seen(client)["cross-zone"].level is Level.OK


def test_one_target_is_an_error_and_an_unhealthy_one_a_warning(client: Client) -> None:
    client.targets = [("healthy", "a"), ("unhealthy", "a")]
    assert seen(client)["targets"].level is Level.WARNING
    client.targets = client.targets[:1]
    assert seen(client)["targets"].level is Level.ERROR


def test_the_listeners_idle_timeout_is_compared_with_ours(client: Client) -> None:
    client.listener["tcp.idle_timeout.seconds"] = "6000"
    assert seen(client)["idle-tcp"].level is Level.WARNING
    client.listener["tcp.idle_timeout.seconds"] = "3600"
    assert seen(client)["idle-tcp"].level is Level.OK


def test_a_group_of_another_kind_or_without_a_balancer(client: Client) -> None:
    client.group["LoadBalancerArns"] = []
    found = seen(client)
    assert found["target-group"].level is Level.WARNING
    assert "cross-zone" not in found
    client.group["Protocol"] = "TCP"
    assert seen(client)["target-group"].level is Level.ERROR


def test_what_aws_refuses_is_one_line(client: Client) -> None:
    class AccessDenied(Exception):
        pass

    def refuse(**_: Any) -> Any:
        raise AccessDenied("not authorized to perform: DescribeTargetGroups\nmore")

    client.describe_target_groups = refuse  # type: ignore[method-assign]
    with pytest.raises(BalancerError, match=r"^not authorized to perform: DescribeTargetGroups$"):
        balancer_facts.collect(client, ARN)


def test_an_answer_without_its_parts_is_an_error(client: Client) -> None:
    client.describe_target_groups = lambda **_: {"TargetGroups": []}  # type: ignore[method-assign]
    with pytest.raises(BalancerError, match="unexpected"):
        balancer_facts.collect(client, ARN)


def test_a_client_needs_a_target_group_and_boto3(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BalancerError, match="no target group"):
        balancer_facts.client("arn:aws:s3:::bucket")

    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(balancer_facts, "import_module", missing)
    with pytest.raises(BalancerError, match=r"everwall\[aws\]"):
        balancer_facts.client(ARN)


def test_the_client_is_of_the_groups_own_region(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Boto:
        @staticmethod
        def client(name: str, region_name: str) -> str:
            asked.append((name, region_name))
            return "client"

    monkeypatch.setattr(balancer_facts, "import_module", lambda name: Boto)
    assert balancer_facts.client(ARN) == "client"
    assert asked == [("elbv2", "eu-west-1")]
