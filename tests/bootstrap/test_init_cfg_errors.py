"""A wrong init-cfg.txt is refused with file, line, key, value and what was expected; secrets are not shown."""

from __future__ import annotations

import base64

import pytest
import trustme

from everwall.bootstrap.faults import BootstrapError
from everwall.bootstrap.parse import parse_init_cfg
from everwall.config import ConfigError

AUTHORITY = trustme.CA()
PEM = AUTHORITY.cert_pem.bytes()
CERTIFICATE = base64.b64encode(PEM).decode()
SECRET = "c0ffee5a17b3449d8e60f1a2b3c4d5e6f708192a3b4c5d6e7f80917263544536"

# (what is wrong, text, line, key, value shown, part of what was expected)
SHORT = SECRET[:62]
LEAF_AND_KEY = base64.b64encode(PEM + AUTHORITY.private_key_pem.bytes()).decode()
WRONG: list[tuple[str, str, int | None, str, str | None, str]] = [
    ("no equals sign", "type\n", 1, "", None, "key=value"),
    ("a colon", "hostname=a\nredis-auth: hunter2\n", 2, "", None, "key=value"),
    ("no key", "=5\n", 1, "", None, "key=value"),
    ("a broken certificate", "-----BEGIN CERTIFICATE-----\n", 1, "", None, "key=value"),
    ("a control character", "hostname=a\nhostn\x00ame=b\n", 2, "", None, "not the character U+0000"),
    ("a lone carriage return", "hostname=a\rtype=static\n", 1, "", None, "U+000D"),
    ("a key twice", "hostname=a\n# c\nhostname=b\n", 3, "hostname", "b", "stands in line 1 already"),
    ("an unused key twice", "type=static\ntype=static\n", 2, "type", None, "stands in line 1 already"),
    ("an unknown key twice", "x=1\nx=2\n", 2, "x", None, "stands in line 1 already"),
    ("a secret twice", "redis-auth=hunter2\nredis-auth=hunter2\n", 2, "redis-auth", None, "each key once"),
    ("hostname with a space", "hostname=my host\n", 1, "hostname", "my host", "a host name"),
    ("hostname that ends in a number", "hostname=10.0.0.1\n", 1, "hostname", "10.0.0.1", "a host name"),
    (
        "inspection without word",
        "plugin-op-commands=aws-gwlb-inspect\n",
        1,
        "plugin-op-commands",
        "aws-gwlb-inspect",
        ":enable",
    ),
    (
        "inspection with a wrong word",
        "plugin-op-commands=aws-gwlb-inspect:yes\n",
        1,
        "plugin-op-commands",
        "aws-gwlb-inspect:yes",
        ":enable or",
    ),
    (
        "resiliency with a wrong word",
        "plugin-op-commands=x,set-sess-ress:enable\n",
        1,
        "plugin-op-commands",
        "set-sess-ress:enable",
        ":True or",
    ),
    (
        "resiliency on and off",
        "plugin-op-commands=set-sess-ress:True,setsess-ress:False\n",
        1,
        "plugin-op-commands",
        "setsess-ress:False",
        "not two that differ",
    ),
    ("endpoint without port", "redis-endpoint=10.0.0.5\n", 1, "redis-endpoint", "10.0.0.5", "host:port"),
    ("endpoint without host", "redis-endpoint=:6379\n", 1, "redis-endpoint", ":6379", "host:port"),
    (
        "endpoint with port 0",
        "redis-endpoint=10.0.0.5:0\n",
        1,
        "redis-endpoint",
        "10.0.0.5:0",
        "from 1 to 65535",
    ),
    (
        "endpoint with port 65536",
        "redis-endpoint=a:65536\n",
        1,
        "redis-endpoint",
        "a:65536",
        "from 1 to 65535",
    ),
    ("endpoint with a named port", "redis-endpoint=a:redis\n", 1, "redis-endpoint", "a:redis", "host:port"),
    (
        "IPv6 without brackets",
        "redis-endpoint=2001:db8::5:6379\n",
        1,
        "redis-endpoint",
        "2001:db8::5:6379",
        "[2001:db8::5]:6379",
    ),
    (
        "no IPv6 in the brackets",
        "redis-endpoint=[10.0.0.5]:6379\n",
        1,
        "redis-endpoint",
        None,
        "an IPv6 address in the brackets",
    ),
    (
        "octet over 255",
        "redis-endpoint=10.0.0.256:6379\n",
        1,
        "redis-endpoint",
        "10.0.0.256:6379",
        "host:port",
    ),
    ("a URL", "redis-endpoint=rediss://a:6379\n", 1, "redis-endpoint", "rediss://a:6379", "host:port"),
    (
        "a URL with a password",
        "redis-endpoint=rediss://:hunter2@a:6379\n",
        1,
        "redis-endpoint",
        None,
        "host:port",
    ),
    (
        "certificate not base64",
        "redis-certificate=hunter2!\n",
        1,
        "redis-certificate",
        None,
        "base64 form of a PEM",
    ),
    (
        "certificate not PEM",
        "redis-certificate=aHVudGVyMg==\n",
        1,
        "redis-certificate",
        None,
        "base64 form of a PEM",
    ),
    (
        "certificate cut off",
        f"redis-certificate={CERTIFICATE[:200]}\n",
        1,
        "redis-certificate",
        None,
        "base64 form",
    ),
    (
        "certificate with its key",
        f"redis-certificate={LEAF_AND_KEY}\n",
        1,
        "redis-certificate",
        None,
        "no private key",
    ),
    ("TLS maybe", "everwall-redis-tls=maybe\n", 1, "everwall-redis-tls", "maybe", "yes or no"),
    (
        "no TLS to another machine",
        "redis-endpoint=10.0.0.5:6379\neverwall-redis-tls=no\n",
        2,
        "everwall-redis-tls",
        "no",
        "on loopback may do without",
    ),
    (
        "no TLS to a name",
        "everwall-redis-tls=no\nredis-endpoint=redis:6379\n",
        1,
        "everwall-redis-tls",
        "no",
        "on loopback may do without",
    ),
    (
        "no TLS to nowhere",
        "everwall-redis-tls=no\n",
        1,
        "everwall-redis-tls",
        "no",
        "on loopback may do without",
    ),
    (
        "no TLS to one of several",
        "everwall-redis-cluster=127.0.0.1:1,10.0.0.5:1\neverwall-redis-tls=no\n",
        2,
        "everwall-redis-tls",
        "no",
        "on loopback may do without",
    ),
    (
        "two topologies",
        "redis-endpoint=a:1\neverwall-redis-cluster=b:1\n",
        2,
        "everwall-redis-cluster",
        "b:1",
        "only one of redis-endpoint (line 1) and everwall-redis-cluster (line 2)",
    ),
    (
        "Sentinels without a service",
        "everwall-redis-sentinel=a:26379\n",
        1,
        "everwall-redis-sentinel",
        "a:26379",
        "everwall-redis-sentinel-service beside it",
    ),
    (
        "a service with a space",
        "everwall-redis-sentinel-service=my master\n",
        1,
        "everwall-redis-sentinel-service",
        "my master",
        "no spaces",
    ),
    ("a seed twice", "everwall-redis-cluster=a:1,a:1\n", 1, "everwall-redis-cluster", "a:1,a:1", "each once"),
    (
        "a seed without a port",
        "everwall-redis-cluster=a:1,b\n",
        1,
        "everwall-redis-cluster",
        "b",
        "host:port",
    ),
    ("no seed", "everwall-redis-cluster=,\n", 1, "everwall-redis-cluster", ",", "host:port of servers"),
    ("too many replicas", "everwall-wait-replicas=17\n", 1, "everwall-wait-replicas", "17", "from 0 to 16"),
    (
        "a password and its file",
        "redis-auth=secret\neverwall-redis-auth-file=/dev/null\n",
        2,
        "everwall-redis-auth-file",
        "/dev/null",
        "an existing file",
    ),
    (
        "a prefix that would break keys",
        "everwall-redis-prefix=blue:1\n",
        1,
        "everwall-redis-prefix",
        "blue:1",
        "letters, digits, dots",
    ),
    (
        "a user of two words",
        "everwall-redis-user=fire wall\n",
        1,
        "everwall-redis-user",
        "fire wall",
        "name of an ACL user",
    ),
    (
        "server name is an address",
        "everwall-redis-server-name=10.0.0.1\n",
        1,
        "everwall-redis-server-name",
        "10.0.0.1",
        "a host name",
    ),
    (
        "secret too short",
        f"everwall-cluster-secret={SHORT}\n",
        1,
        "everwall-cluster-secret",
        None,
        "at least 32 random bytes",
    ),
    (
        "secret is a word",
        "everwall-cluster-secret=hunter2\n",
        1,
        "everwall-cluster-secret",
        None,
        "hexadecimal or base64",
    ),
    (
        "secret and secret file",
        f"everwall-cluster-secret={SECRET}\neverwall-cluster-secret-file=x\n",
        2,
        "everwall-cluster-secret-file",
        "x",
        "only one of",
    ),
    (
        "secret file missing",
        "everwall-cluster-secret-file=nowhere\n",
        1,
        "everwall-cluster-secret-file",
        "nowhere",
        "an existing file",
    ),
    (
        "secret where its file belongs",
        f"everwall-cluster-secret-file={SECRET}\n",
        1,
        "everwall-cluster-secret-file",
        None,
        "an existing file",
    ),
    (
        "a second secret without a first",
        f"everwall-cluster-secret-second={SECRET}\n",
        1,
        "everwall-cluster-secret-second",
        None,
        "everwall-cluster-secret beside it",
    ),
    (
        "the same secret twice",
        f"everwall-cluster-secret={SECRET}\neverwall-cluster-secret-second={SECRET}\n",
        2,
        "everwall-cluster-secret-second",
        None,
        "another secret than everwall-cluster-secret",
    ),
    (
        "second secret and its file",
        f"everwall-cluster-secret-second={SECRET}\neverwall-cluster-secret-second-file=x\n",
        2,
        "everwall-cluster-secret-second-file",
        "x",
        "only one of",
    ),
    (
        "sources by name",
        "everwall-geneve-sources=gwlb.example.com\n",
        1,
        "everwall-geneve-sources",
        "gwlb.example.com",
        "IPv4 prefixes",
    ),
    (
        "sources in IPv6",
        "everwall-geneve-sources=10.0.0.0/8,2001:db8::/32\n",
        1,
        "everwall-geneve-sources",
        "2001:db8::/32",
        "IPv4 prefixes",
    ),
    (
        "bits after the prefix",
        "everwall-geneve-sources=10.0.0.1/8\n",
        1,
        "everwall-geneve-sources",
        "10.0.0.1/8",
        "without bits after",
    ),
    ("only commas", "everwall-geneve-sources=,,\n", 1, "everwall-geneve-sources", ",,", "IPv4 prefixes"),
    ("health port 0", "everwall-health-port=0\n", 1, "everwall-health-port", "0", "from 1 to 65535"),
    (
        "health port with a comment",
        "everwall-health-port=80 # http\n",
        1,
        "everwall-health-port",
        "80 # http",
        "a whole number",
    ),
    (
        "health port in Arabic digits",
        "everwall-health-port=\u0661\n",
        1,
        "everwall-health-port",
        "\u0661",
        "a whole number",
    ),
    ("too few sessions", "everwall-max-sessions=63\n", 1, "everwall-max-sessions", "63", "from 64 to"),
    (
        "too many sessions",
        f"everwall-max-sessions={10**11}\n",
        1,
        "everwall-max-sessions",
        None,
        "to 16000000",
    ),
    (
        "sessions with a unit",
        "everwall-max-sessions=10k\n",
        1,
        "everwall-max-sessions",
        "10k",
        "a whole number",
    ),
    (
        "grace with a unit",
        "everwall-join-grace=10s\n",
        1,
        "everwall-join-grace",
        "10s",
        "seconds from 0 to 3600",
    ),
    ("grace negative", "everwall-join-grace=-1\n", 1, "everwall-join-grace", "-1", "seconds from 0 to 3600"),
    (
        "grace not a number",
        "everwall-join-grace=nan\n",
        1,
        "everwall-join-grace",
        "nan",
        "seconds from 0 to 3600",
    ),
    (
        "grace of two hours",
        "everwall-join-grace=7200\n",
        1,
        "everwall-join-grace",
        "7200",
        "seconds from 0 to 3600",
    ),
    (
        "policy missing",
        "everwall-policy=nowhere.yaml\n",
        1,
        "everwall-policy",
        "nowhere.yaml",
        "an existing file",
    ),
    (
        "interface with a slash",
        "everwall-data-interface=ethernet1/1\n",
        1,
        "everwall-data-interface",
        "ethernet1/1",
        "name of an interface",
    ),
    (
        "interface too long",
        f"everwall-mgmt-interface={'e' * 16}\n",
        1,
        "everwall-mgmt-interface",
        "e" * 16,
        "at most 15",
    ),
    (
        "data address in IPv6",
        "everwall-data-address=2001:db8::1\n",
        1,
        "everwall-data-address",
        "2001:db8::1",
        "an IPv4 address",
    ),
    (
        "data address with length",
        "everwall-data-address=10.0.0.1/24\n",
        1,
        "everwall-data-address",
        "10.0.0.1/24",
        "an IPv4 address",
    ),
    ("port dpdk", "everwall-port=dpdk\n", 1, "everwall-port", "dpdk", "auto, xdp, raw or udp"),
    ("cut-through yes", "everwall-cut-through=yes\n", 1, "everwall-cut-through", "yes", "on or off"),
    (
        "socket path too long",
        f"everwall-control-socket=/{'s' * 107}\n",
        1,
        "everwall-control-socket",
        None,
        "at most 107 bytes",
    ),
]


@pytest.mark.parametrize(
    ("text", "line", "key", "value", "expected"),
    [case[1:] for case in WRONG],
    ids=[case[0] for case in WRONG],
)
def test_a_wrong_file_is_refused_with_its_place(
    text: str, line: int | None, key: str, value: str | None, expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_init_cfg(text)
    error = caught.value
    assert (error.line, error.key) == (line, key), str(error)
    assert expected in error.expected, str(error)
    assert isinstance(error, BootstrapError), "it has a name"
    if value is not None:
        assert error.value == value, str(error)
    said = str(error)
    assert said.isprintable()
    assert said.startswith(f"init-cfg.txt:{line}: {key}")
    for secret in ("hunter2", SECRET, SHORT):
        assert secret not in said
        assert secret not in repr(vars(error))


def test_the_line_a_person_reads() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_init_cfg("hostname=a\nredis-endpoint=10.0.0.5\n")
    assert str(caught.value) == (
        "init-cfg.txt:2: redis-endpoint: '10.0.0.5': expected host:port: 10.0.0.5:6379, "
        "[2001:db8::5]:6379 or redis.example.com:6379"
    )
