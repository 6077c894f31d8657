"""Everything that can be wrong with a bootstrap has a name, a place and an expectation; nothing secret is shown."""

from __future__ import annotations

import base64
import gzip
from pathlib import Path
from typing import Any

import pytest

from everwall.bootstrap import faults
from everwall.bootstrap.load import Given, load_bootstrap
from everwall.bootstrap.machine import Machine
from everwall.bootstrap.zones import read_policy_of
from everwall.config import ConfigError
from tests.policy import vendor

SECRET = "c0ffee5a17b3449d8e60f1a2b3c4d5e6f708192a3b4c5d6e7f80917263544536"
HIDDEN = "hunter2"

NETWORK = faults.NetworkingError
NONE = faults.NoConfigurationError
LINE = faults.LineError
PARAMETER = faults.ParameterError
COMMAND = faults.CommandError
CLUSTER_SECRET = faults.ClusterSecretError
USER_DATA = faults.UserDataError
PACKAGE = faults.PackageError
SOURCE = faults.SourceError
ZONE = faults.ZoneError

STATIC = "type=static\nip-address=10.0.0.5\nnetmask=255.255.255.0\ndefault-gateway=10.0.0.1\n"


def static(**other: str) -> str:
    """A static file in which one key says something else, or nothing (an empty value)."""
    lines = []
    for line in STATIC.splitlines():
        key = line.partition("=")[0]
        lines.append(f"{key}={other[key.replace('-', '_')]}" if key.replace("-", "_") in other else line)
    return "\n".join(lines) + "\n"


def six(address: str, gateway: str) -> str:
    return f"{STATIC}ipv6-address={address}\nipv6-default-gateway={gateway}\n"


def commands(word: str) -> str:
    return f"hostname=a\nplugin-op-commands={word}\n"


def vpce(word: str) -> str:
    return commands(f"aws-gwlb-associate-vpce:{word}")


ID = "vpce-0a1b2c3d4e5f60718"

# (what is wrong, text of the init-cfg.txt, error, line, key, value, part of what was expected)
FILES: list[tuple[str, str, type[ConfigError], int | None, str, str | None, str]] = [
    # Networking
    ("type of nothing known", "type=dhcp\n", NETWORK, 1, "type", "dhcp", "static or dhcp-client"),
    ("type in capitals", "type=Static\n", NETWORK, 1, "type", "Static", "static or dhcp-client"),
    ("static without address", static(ip_address=""), NETWORK, 2, "ip-address", None, "type is static"),
    ("static without netmask", static(netmask=""), NETWORK, 3, "netmask", None, "type is static"),
    ("static without gateway", static(default_gateway=""), NETWORK, 4, "default-gateway", None, "a value"),
    ("static and nothing else", "type=static\n", NETWORK, None, "ip-address", None, "a value"),
    (
        "address with length",
        static(ip_address="10.0.0.5/24"),
        NETWORK,
        2,
        "ip-address",
        "10.0.0.5/24",
        "IPv4",
    ),
    ("address out of range", static(ip_address="10.0.0.256"), NETWORK, 2, "ip-address", None, "an IPv4"),
    ("address in IPv6", static(ip_address="2001:db8::5"), NETWORK, 2, "ip-address", None, "an IPv4 address"),
    ("address by name", static(ip_address="fw-a"), NETWORK, 2, "ip-address", "fw-a", "an IPv4 address"),
    ("netmask as length", static(netmask="24"), NETWORK, 3, "netmask", "24", "as 255.255.255.0"),
    ("netmask with a hole", static(netmask="255.0.255.0"), NETWORK, 3, "netmask", "255.0.255.0", "a netmask"),
    ("netmask inverted", static(netmask="0.0.0.255"), NETWORK, 3, "netmask", "0.0.0.255", "ones stand first"),
    (
        "gateway elsewhere",
        static(default_gateway="10.9.0.1"),
        NETWORK,
        4,
        "default-gateway",
        "10.9.0.1",
        "in 10.0.0.0/24",
    ),
    (
        "gateway is the address",
        static(default_gateway="10.0.0.5"),
        NETWORK,
        4,
        "default-gateway",
        None,
        "another address",
    ),
    ("gateway by name", static(default_gateway="gw"), NETWORK, 4, "default-gateway", "gw", "an IPv4 address"),
    (
        "wrong address though dhcp",
        "type=dhcp-client\nip-address=x\n",
        NETWORK,
        2,
        "ip-address",
        "x",
        "an IPv4",
    ),
    (
        "IPv6 without length",
        six("2001:db8::5", "2001:db8::1"),
        NETWORK,
        5,
        "ipv6-address",
        None,
        "prefix length",
    ),
    (
        "IPv6 that is IPv4",
        six("10.0.0.5/24", "2001:db8::1"),
        NETWORK,
        5,
        "ipv6-address",
        None,
        "an IPv6 address",
    ),
    ("IPv6 without gateway", six("2001:db8::5/64", ""), NETWORK, 6, "ipv6-default-gateway", None, "a value"),
    ("IPv6 gateway wrong", six("2001:db8::5/64", "x"), NETWORK, 6, "ipv6-default-gateway", "x", "an IPv6"),
    (
        "DNS server by name",
        "dns-primary=ns1\n",
        NETWORK,
        1,
        "dns-primary",
        "ns1",
        "the address of a DNS server",
    ),
    (
        "DNS server of all zeros",
        "dns-primary=0.0.0.0\n",
        NETWORK,
        1,
        "dns-primary",
        "0.0.0.0",
        "one DNS server",
    ),
    (
        "DNS server with a port",
        "dns-secondary=10.0.0.2:53\n",
        NETWORK,
        1,
        "dns-secondary",
        None,
        "address of a DNS",
    ),
    (
        "DNS server multicast",
        "dns-secondary=224.0.0.1\n",
        NETWORK,
        1,
        "dns-secondary",
        None,
        "one DNS server",
    ),
    # Lines
    ("a line without =", "hostname=a\ntype static\n", LINE, 2, "", None, "key=value"),
    ("a secret on a line of its own", f"redis-auth=\n{HIDDEN}\n", LINE, 2, "", None, "key=value"),
    ("a key twice", "hostname=a\nhostname=a\n", LINE, 2, "hostname", "a", "in line 1 already"),
    ("a zero byte", "hostname=\x00\n", LINE, 1, "", None, "printable"),
    # Words of plugin-op-commands
    ("vpce without id", vpce("@ethernet1/1.10"), COMMAND, 2, "plugin-op-commands", None, "vpce-"),
    (
        "vpce with capitals",
        vpce("vpce-0A1B2C3D4E5F60718@ethernet1/1.10"),
        COMMAND,
        2,
        "plugin-op-commands",
        None,
        "vpce-",
    ),
    ("vpce too short", vpce("vpce-0a1b@ethernet1/1.10"), COMMAND, 2, "plugin-op-commands", None, "vpce-"),
    (
        "vpce of 65 bits",
        vpce("vpce-1a1b2c3d4e5f60718@ethernet1/1.10"),
        COMMAND,
        2,
        "plugin-op-commands",
        None,
        "vpce-",
    ),
    ("vpce without interface", vpce(ID), COMMAND, 2, "plugin-op-commands", None, "a subinterface"),
    ("subinterface 0", vpce(f"{ID}@ethernet1/1.0"), COMMAND, 2, "plugin-op-commands", None, "from 1 to 9999"),
    (
        "subinterface 10000",
        vpce(f"{ID}@ethernet1/1.10000"),
        COMMAND,
        2,
        "plugin-op-commands",
        None,
        "to 9999",
    ),
    (
        "interface of the system",
        vpce(f"{ID}@eth1.10"),
        COMMAND,
        2,
        "plugin-op-commands",
        None,
        "ethernet1/1.10",
    ),
    (
        "vpce on two interfaces",
        vpce(f"{ID}@ethernet1/1.1,aws-gwlb-associate-vpce:{ID}@ethernet1/1.2"),
        COMMAND,
        2,
        "plugin-op-commands",
        f"aws-gwlb-associate-vpce:{ID}@ethernet1/1.2",
        "it is on ethernet1/1.1",
    ),
    (
        "resiliency of nothing",
        commands("set-sess-ress"),
        COMMAND,
        2,
        "plugin-op-commands",
        "set-sess-ress",
        ":True",
    ),
    (
        "resiliency enabled",
        commands("set-sess-ress:enable"),
        COMMAND,
        2,
        "plugin-op-commands",
        None,
        ":True or",
    ),
    (
        "inspection true",
        commands("aws-gwlb-inspect:True"),
        COMMAND,
        2,
        "plugin-op-commands",
        None,
        ":enable or",
    ),
    (
        "no workers",
        commands("set-dp-cores:0"),
        COMMAND,
        2,
        "plugin-op-commands",
        "set-dp-cores:0",
        "set-dp-cores:1",
    ),
    (
        "workers in words",
        commands("set-dp-cores:two"),
        COMMAND,
        2,
        "plugin-op-commands",
        None,
        "to set-dp-cores:64",
    ),
    (
        "on and off",
        commands("set-sess-ress:True,set-sess-ress:False"),
        COMMAND,
        2,
        "plugin-op-commands",
        None,
        "differ",
    ),
    # Values
    (
        "host name of 64 letters",
        f"hostname={'x-' * 32}y\n",
        PARAMETER,
        1,
        "hostname",
        "x-" * 32 + "y",
        "a host name",
    ),
    (
        "endpoint without port",
        "redis-endpoint=10.0.0.5\n",
        PARAMETER,
        1,
        "redis-endpoint",
        "10.0.0.5",
        "host:port",
    ),
    (
        "endpoint as URL",
        f"redis-endpoint=rediss://:{HIDDEN}@a:1\n",
        PARAMETER,
        1,
        "redis-endpoint",
        None,
        "host:port",
    ),
    (
        "certificate as PEM",
        "redis-certificate=-----BEGIN\n",
        PARAMETER,
        1,
        "redis-certificate",
        None,
        "base64",
    ),
    (
        "policy that is not there",
        "everwall-policy=x.yaml\n",
        PARAMETER,
        1,
        "everwall-policy",
        "x.yaml",
        "existing",
    ),
    (
        "sources with host bits",
        "everwall-geneve-sources=10.0.0.1/8\n",
        PARAMETER,
        1,
        "everwall-geneve-sources",
        "10.0.0.1/8",
        "without bits",
    ),
    (
        "secret id with a space",
        "everwall-cluster-secret-id=my secret\n",
        PARAMETER,
        1,
        "everwall-cluster-secret-id",
        "my secret",
        "name or ARN",
    ),
    # The cluster secret
    (
        "secret too short",
        f"everwall-cluster-secret={SECRET[:60]}\n",
        CLUSTER_SECRET,
        1,
        "everwall-cluster-secret",
        None,
        "at least 32 random bytes",
    ),
    (
        "secret of words",
        f"everwall-cluster-secret={HIDDEN}\n",
        CLUSTER_SECRET,
        1,
        "everwall-cluster-secret",
        None,
        "hexadecimal",
    ),
    (
        "secret and its id",
        f"everwall-cluster-secret={SECRET}\neverwall-cluster-secret-id=x\n",
        CLUSTER_SECRET,
        2,
        "everwall-cluster-secret-id",
        None,
        "only one of",
    ),
    (
        "secret's file and id",
        "everwall-cluster-secret-id=x\neverwall-cluster-secret-file=y\n",
        CLUSTER_SECRET,
        1,
        "everwall-cluster-secret-id",
        None,
        "only one of",
    ),
]


def refused(source: str | Path, given: Given | None = None, machine: Machine | None = None) -> Any:
    """The error of a source that must not load."""
    with pytest.raises(ConfigError) as caught:
        read_policy_of(load_bootstrap(source, given, machine or Machine()).config)
    said = f"{caught.value} {vars(caught.value)}"
    for secret in (HIDDEN, SECRET, SECRET[:60]):
        assert secret not in said
    assert str(caught.value).isprintable()
    return caught.value


@pytest.mark.parametrize(
    ("text", "error", "line", "key", "value", "expected"),
    [case[1:] for case in FILES],
    ids=[case[0] for case in FILES],
)
def test_a_wrong_init_cfg_has_a_named_error(
    tmp_path: Path,
    text: str,
    error: type[ConfigError],
    line: int | None,
    key: str,
    value: str | None,
    expected: str,
) -> None:
    place = tmp_path / "init-cfg.txt"
    place.write_text(text)
    found = refused(place)
    assert type(found) is error, found
    assert (found.file, found.line, found.key) == (str(place), line, key)
    assert expected in found.expected
    if value is not None:
        assert found.value == value
    assert found.title


# (what is wrong, user data, error, line, key, part of what was expected)
USER: list[tuple[str, bytes, type[ConfigError], int | None, str, str]] = [
    ("a script", b"#!/bin/sh\necho\n", USER_DATA, 1, "", "not a script"),
    ("cloud-init", b"#cloud-config\nusers: []\n", USER_DATA, 1, "", "not a cloud-init file"),
    ("MIME", b"Content-Type: multipart/mixed\n", USER_DATA, 1, "", "not a MIME archive"),
    ("PowerShell", b"<powershell>x</powershell>", USER_DATA, 1, "", "PowerShell"),
    ("compressed", gzip.compress(b"hostname=a"), USER_DATA, None, "", "not gzip"),
    (
        "encoded twice",
        base64.b64encode(b"hostname=fw-a;redis-auth=" + HIDDEN.encode()),
        USER_DATA,
        1,
        "",
        "encoded twice",
    ),
    ("Latin-1", b"hostname=a\nredis-auth=\xe9\n", USER_DATA, 2, "", "UTF-8"),
    ("empty", b" \n\n", USER_DATA, None, "", "it is empty"),
    ("a word", b"hostname=a;reboot", LINE, 1, "", "key=value"),
    ("a key twice in a line", b"hostname=a;hostname=b", LINE, 1, "hostname", "in line 1 already"),
    ("commas between keys", b"hostname=a,type=static", PARAMETER, 1, "hostname", "a host name"),
    ("swap of nothing", b"mgmt-interface-swap=yes", PARAMETER, 1, "mgmt-interface-swap", "enable or disable"),
    (
        "a bucket with capitals",
        b"vmseries-bootstrap-aws-s3bucket=My_Bucket",
        PARAMETER,
        1,
        "vmseries-bootstrap-aws-s3bucket",
        "bucket/folder",
    ),
    (
        "a bucket that climbs",
        b"vmseries-bootstrap-aws-s3bucket=bucket/../x",
        PARAMETER,
        1,
        "vmseries-bootstrap-aws-s3bucket",
        "bucket/folder",
    ),
    ("two secrets", b"secret_name=a;secret-name=b", PARAMETER, 1, "secret-name", "only one of"),
]


@pytest.mark.parametrize(
    ("data", "error", "line", "key", "expected"), [case[1:] for case in USER], ids=[case[0] for case in USER]
)
def test_wrong_user_data_has_a_named_error(
    tmp_path: Path, data: bytes, error: type[ConfigError], line: int | None, key: str, expected: str
) -> None:
    place = tmp_path / "user-data"
    place.write_bytes(data)
    found = refused(f"user-data:{place}")
    assert type(found) is error, found
    assert (found.line, found.key) == (line, key)
    assert expected in found.expected


BOMB = '<!DOCTYPE a [<!ENTITY b "c">]><config>&b;</config>'
READER = '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><config>&b;</config>'
WITH_SYSTEM = (
    "<config><devices><entry><deviceconfig><system>{}</system></deviceconfig></entry></devices></config>"
)

NO_FILE = ("", None, "")

# (what is wrong, files, error, (file, line, key), part of what was expected)
Where = tuple[str, int | None, str]
PACKAGES: list[tuple[str, dict[str, str], type[ConfigError], Where, str]] = [
    ("an empty folder", {}, NONE, NO_FILE, "config/ is missing"),
    ("config/ without a file", {"config/": ""}, NONE, NO_FILE, "config/init-cfg.txt"),
    ("the file beside config/", {"config/": "", "init-cfg.txt": ""}, NONE, NO_FILE, "not in it"),
    ("config in capitals", {"Config/init-cfg.txt": ""}, NONE, NO_FILE, "did you mean Config?"),
    ("an ending too many", {"config/init-cfg.txt.txt": ""}, NONE, NO_FILE, "did you mean init-cfg.txt.txt?"),
    ("an underscore", {"config/init_cfg.txt": ""}, NONE, NO_FILE, "did you mean init_cfg.txt?"),
    ("a folder too deep", {"bootstrap/config/init-cfg.txt": ""}, NONE, NO_FILE, "it is in bootstrap/"),
    ("for other machines only", {"config/0078-init-cfg.txt": ""}, NONE, NO_FILE, "or one for this machine"),
    (
        "XML that breaks off",
        {"config/init-cfg.txt": "", "config/bootstrap.xml": "<config>"},
        PACKAGE,
        ("config/bootstrap.xml", 1, ""),
        "XML (",
    ),
    (
        "an entity bomb",
        {"config/init-cfg.txt": "", "config/bootstrap.xml": BOMB},
        PACKAGE,
        ("config/bootstrap.xml", 1, ""),
        "no document type",
    ),
    (
        "XML that reads files",
        {"config/init-cfg.txt": "", "config/bootstrap.xml": READER},
        PACKAGE,
        ("config/bootstrap.xml", 1, ""),
        "no document type",
    ),
    (
        "another root",
        {"config/init-cfg.txt": "", "config/bootstrap.xml": "<response/>"},
        PACKAGE,
        ("config/bootstrap.xml", 1, ""),
        "<config>",
    ),
    (
        "a wrong address in the XML",
        {
            "config/init-cfg.txt": "",
            "config/bootstrap.xml": WITH_SYSTEM.format(
                "<dns-setting><servers><primary>ns</primary></servers></dns-setting>"
            ),
        },
        NETWORK,
        ("config/bootstrap.xml", 1, "dns-primary"),
        "DNS server",
    ),
    (
        "an endpoint in no zone",
        {
            "config/init-cfg.txt": vpce(f"{ID}@ethernet1/1.9") + "everwall-policy=p.yaml\n",
            "config/p.yaml": "zones: {web: {interfaces: ethernet1/1.10}}\n",
        },
        ZONE,
        ("config/init-cfg.txt", 2, "plugin-op-commands"),
        "interfaces of its zones: ethernet1/1.10",
    ),
    (
        "an endpoint in two zones",
        {
            "config/init-cfg.txt": vpce(f"{ID}@ethernet1/1.9") + "everwall-policy=p.yaml\n",
            "config/p.yaml": f"zones: {{web: {{interfaces: ethernet1/1.9}}, back: {{endpoints: {ID}}}}}\n",
        },
        ConfigError,
        ("config/p.yaml", 1, "zones.back.endpoints"),
        "each endpoint once (it is in zone web already)",
    ),
    (
        "a gateway elsewhere in the XML",
        {
            "config/init-cfg.txt": "",
            "config/bootstrap.xml": WITH_SYSTEM.format(
                "<type><static/></type>\n<ip-address>10.0.0.5</ip-address>\n<netmask>255.255.255.0</netmask>\n"
                "<default-gateway>10.9.0.1</default-gateway>"
            ),
        },
        NETWORK,
        ("config/bootstrap.xml", 4, "default-gateway"),
        "in 10.0.0.0/24",
    ),
    (
        "a wrong line of a policy that the file names",
        {
            "config/init-cfg.txt": "everwall-policy=p.yaml\n",
            "config/p.yaml": "rules:\n- name: a\n  source: 10.0.0.1/8\n",
        },
        ConfigError,
        ("config/p.yaml", 2, "rules[1]"),
        "the key destination",
    ),
    (
        "a rule of the XML that cannot be left out",
        {
            "config/init-cfg.txt": "",
            "config/bootstrap.xml": vendor.config(
                vendor.rule("stop", "deny", source="RU"), vendor.rule("web")
            ),
        },
        ConfigError,
        ("config/bootstrap.xml", 2, "rule"),
        "would allow what it refuses",
    ),
    (
        "a secret's file that holds none",
        {
            "config/init-cfg.txt": "hostname=a\neverwall-cluster-secret-file=s\n",
            "config/s": HIDDEN,
        },
        CLUSTER_SECRET,
        ("config/init-cfg.txt", 2, "everwall-cluster-secret-file"),
        "at least 32 random bytes",
    ),
    (
        "a file for this machine that is wrong",
        {"config/init-cfg.txt": "", "config/0042-init-cfg.txt": "hostname=a\ntype=ppp\n"},
        NETWORK,
        ("config/0042-init-cfg.txt", 2, "type"),
        "static or dhcp-client",
    ),
]


@pytest.mark.parametrize(
    ("files", "error", "where", "expected"),
    [case[1:] for case in PACKAGES],
    ids=[case[0] for case in PACKAGES],
)
def test_a_wrong_package_has_a_named_error(
    tmp_path: Path, files: dict[str, str], error: type[ConfigError], where: Where, expected: str
) -> None:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.mkdir(exist_ok=True) if name.endswith("/") else path.write_text(text)
    found = refused(tmp_path, machine=Machine(("0042",)))
    assert type(found) is error, found
    assert expected in found.expected
    place = (str(tmp_path / where[0]) if where[0] else str(tmp_path), *where[1:])
    assert (found.file, found.line, found.key or "") == place


@pytest.mark.parametrize(
    "source", ["s3://", "s3://My_Bucket", "s3://ab", "s3://bucket//x", "s3://bucket/../y"]
)
def test_a_bucket_that_cannot_be_is_refused_before_anybody_is_asked(source: str) -> None:
    found = refused(source)
    assert type(found) is SOURCE
    assert "bucket/folder" in found.expected


def test_there_are_at_least_sixty_of_them_and_each_kind_is_among_them() -> None:
    assert len(FILES) + len(USER) + len(PACKAGES) >= 60
    kinds = {case[2] for case in (*FILES, *USER, *PACKAGES)} | {SOURCE}
    known = {
        kind
        for kind in vars(faults).values()
        if isinstance(kind, type) and issubclass(kind, faults.BootstrapError)
    }
    assert known - {faults.BootstrapError} - kinds == set()
