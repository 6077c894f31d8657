"""The load balancer's YAML: AWS's names and defaults, and mistakes told with their place."""

from __future__ import annotations

import pytest

from everwall.balancer.config import KEYS, load
from everwall.config import ConfigError

SMALLEST = """\
address: 10.40.0.1
endpoints:
  - id: vpce-0123456789abcdef0
    tun: gwlbe0
"""


def test_defaults_are_those_of_aws():
    config = load("gwlb.yaml", SMALLEST)
    assert (config.health_check_protocol, config.health_check_port, config.health_check_path) == (
        "TCP",
        80,
        "/",
    )
    assert (config.health_check_interval, config.health_check_timeout) == (10, 5)
    assert (config.healthy_threshold, config.unhealthy_threshold) == (5, 2)
    assert config.matcher == ((200, 399),)
    assert (config.rebalance, config.deregistration_delay, config.tcp_idle) == (False, 300, 350)
    assert config.endpoints[0].id == 0x123456789ABCDEF0


def test_everything_that_may_be_said():
    config = load(
        "gwlb.yaml",
        """\
address: 127.0.0.2
transport: udp
max_flows: 5000
endpoints:
  - {id: 0xfedcba9876543210, udp: {listen: 127.0.0.2:7001, peer: 127.0.0.2:7002}}
  - {id: 0x1, tun: gwlbe1, mtu: 1400}
  - {id: 0x2, packet: gwlbe2, mtu: 8500}
targets:
  - 127.0.1.1
  - {id: fw2, address: 127.0.1.2}
protocol: GENEVE
port: 6081
health_check_protocol: HTTP
health_check_port: 8080
health_check_path: /health
health_check_interval_seconds: 0.2
health_check_timeout_seconds: 0.2
healthy_threshold_count: 2
unhealthy_threshold_count: 3
matcher: 200,204,300-302
target_failover.on_unhealthy: rebalance
target_failover.on_deregistration: rebalance
deregistration_delay.timeout_seconds: 0.5
tcp.idle_timeout.seconds: 6000
""",
    )
    assert config.endpoints[0].id == 0xFEDCBA9876543210 - (1 << 64)
    assert config.endpoints[0].peer == ("127.0.0.2", 7002)
    assert [(one.kind, one.device, one.mtu) for one in config.endpoints[1:]] == [
        ("tun", "gwlbe1", 1400),
        ("packet", "gwlbe2", 8500),
    ]
    assert [(target.id, target.address) for target in config.targets] == [
        ("127.0.1.1", "127.0.1.1"),
        ("fw2", "127.0.1.2"),
    ]
    assert config.matcher == ((200, 200), (204, 204), (300, 302))
    assert config.rebalance


@pytest.mark.parametrize(
    ("text", "line", "key", "expected"),
    [
        ("health_check_interval_seconds: 0.01", 5, "health_check_interval_seconds", "0.05 to 300 seconds"),
        ("health_check_interval_seconds: often", 5, "health_check_interval_seconds", "0.05 to 300 seconds"),
        (
            "health_check_timeout_seconds: 20",
            5,
            "health_check_timeout_seconds",
            "interval_seconds, which is 10",
        ),
        (
            "health_check_interval_seconds: 1",
            5,
            "health_check_interval_seconds",
            "at least health_check_timeout",
        ),
        ("healthy_threshold_count: 1", 5, "healthy_threshold_count", "2 to 10"),
        ("unhealthy_threshold_count: 11", 5, "unhealthy_threshold_count", "2 to 10"),
        ("health_check_protocol: UDP", 5, "health_check_protocol", "TCP, HTTP, HTTPS"),
        ("health_check_path: 'x y'", 5, "health_check_path", "begins with /"),
        ("matcher: 100-200", 5, "matcher", "200 to 499"),
        ("port: 6082", 5, "port", "6081"),
        ("deregistration_delay.timeout_seconds: 3601", 5, "deregistration_delay", "0 to 3600"),
        ("tcp.idle_timeout.seconds: 59", 5, "tcp.idle_timeout.seconds", "60 to 6000"),
        ("helth_check_port: 80", 5, "helth_check_port", "did you mean health_check_port"),
        ("targets: [10.0.0.1, 10.0.0.1]", 5, "targets[2]", "no other target has"),
        ("targets: [0.0.0.0]", 5, "targets[1]", "one host"),
        ("targets:\n  - address: ten", 6, "targets[1].address", "IPv4 address"),
        (
            "target_failover.on_unhealthy: rebalance",
            5,
            "target_failover.on_unhealthy",
            "both must be the same",
        ),
        (
            "target_failover.on_unhealthy: rebalance\ntarget_failover.on_deregistration: no_rebalance",
            6,
            "target_failover.on_deregistration",
            "which is rebalance: both must be the same",
        ),
    ],
)
def test_a_mistake_names_file_line_key_and_what_was_expected(text, line, key, expected):
    with pytest.raises(ConfigError) as caught:
        load("gwlb.yaml", SMALLEST + text + "\n")
    said = str(caught.value)
    assert said.startswith(f"gwlb.yaml:{line}:")
    assert key in said
    assert expected in said


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "address and endpoints"),
        ("address: 10.0.0.1\n", "endpoints"),
        ("address: 10.0.0.1\nendpoints: []\n", "1 to 64 endpoints"),
        ("address: 10.0.0.1\nendpoints: [{id: 12, tun: a}]\n", "endpoint id"),
        ("address: 10.0.0.1\nendpoints: [{id: 0x1, tun: a, packet: a}]\n", "either tun, packet or udp"),
        ("address: 10.0.0.1\nendpoints: [{id: 0x1, tun: a, mtu: 8501}]\n", "576 to 8500"),
        ("address: 10.0.0.1\nendpoints: [{id: 0x1}]\n", "either tun, packet or udp"),
        (
            "address: 10.0.0.1\nendpoints: [{id: 0x1, tun: a}, {id: vpce-1, tun: b}]\n",
            "no other endpoint has",
        ),
        ("address: 10.0.0.1\nendpoints: [{id: 0x1, udp: {listen: x, peer: y}}]\n", "address:port"),
    ],
)
def test_what_must_be_there_is_asked_for(text, expected):
    with pytest.raises(ConfigError, match=expected):
        load("gwlb.yaml", text)


def test_every_key_is_in_the_documents_table():
    from pathlib import Path

    document = (Path(__file__).parents[2] / "docs" / "gwlb.md").read_text()
    for key in KEYS:
        assert f"| `{key}`" in document, key
