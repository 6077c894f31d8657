"""init-cfg.txt: an existing file works, a wrong one is refused with its place, secrets stay secret."""

from __future__ import annotations

import base64
import ipaddress
import logging
from dataclasses import asdict, fields
from pathlib import Path

import pytest
import trustme
from hypothesis import example, given
from hypothesis import strategies as st

from everwall.bootstrap.init_cfg import (
    InitCfg,
    RedisEndpoint,
)
from everwall.bootstrap.keys import (
    BUCKET_KEY,
    MODES,
    NETWORKING_KEYS,
    SECRET_NAME_KEYS,
    SWAP_KEY,
    TOKENS,
    UNUSED_KEYS,
    UNUSED_MODES,
    UNUSED_TOKENS,
    USED_KEYS,
)
from everwall.bootstrap.parse import parse_init_cfg
from everwall.config import ConfigError

AUTHORITY = trustme.CA()
PEM = AUTHORITY.cert_pem.bytes()
CERTIFICATE = base64.b64encode(PEM).decode()
SECRET = "c0ffee5a17b3449d8e60f1a2b3c4d5e6f708192a3b4c5d6e7f80917263544536"
ROOT = Path(__file__).resolve().parents[2]

VENDOR_SAMPLE = f"""\
# A file as people have it
type=dhcp-client
ip-address=
default-gateway=
netmask=
hostname=fw-a
vm-auth-key=0123456789
panorama-server=10.9.9.9
tplname=stack
dgname=group
op-command-modes=mgmt-interface-swap,jumbo-frame
plugin-op-commands=set-sess-ress:True, aws-gwlb-inspect:enable,panorama-licensing-mode-on

redis-endpoint=master.sessions.example.com:6379
redis-auth=Tr0ub4dor&3#=x
redis-certificate={CERTIFICATE}
everwall-cluster-secret={SECRET}
"""


def parse(text: str) -> tuple[InitCfg, list[str]]:
    return parse_init_cfg(text, "init-cfg.txt")


def read(text: str) -> InitCfg:
    return parse(text)[0]


def test_a_file_made_for_the_vendor_works_with_one_line_more() -> None:
    cfg, warnings = parse(VENDOR_SAMPLE)
    assert cfg.hostname == "fw-a"
    assert cfg.mgmt_interface_swap
    assert cfg.jumbo_frame
    assert cfg.session_resiliency
    assert cfg.gwlb_inspect
    assert cfg.redis_endpoint == RedisEndpoint("master.sessions.example.com", 6379)
    assert cfg.redis_auth is not None
    assert cfg.redis_auth.get_secret_value() == "Tr0ub4dor&3#=x"
    assert cfg.redis_certificate == PEM
    assert cfg.cluster_secret is not None
    assert cfg.cluster_secret.get_secret_value() == bytes.fromhex(SECRET)
    assert cfg.redis_tls
    assert cfg.resiliency == (True, "sessions are kept in master.sessions.example.com:6379 over TLS")
    own = "recognised, not used by Everwall, because each node reads its own files, and there is no management server"
    assert cfg.networking.type == "dhcp-client"
    assert warnings == [
        f"init-cfg.txt:7: vm-auth-key: {own}",
        f"init-cfg.txt:8: panorama-server: {own}",
        f"init-cfg.txt:9: tplname: {own}",
        f"init-cfg.txt:10: dgname: {own}",
        "init-cfg.txt:12: plugin-op-commands: 'panorama-licensing-mode-on' is recognised, not used by Everwall, "
        "because Everwall needs no licence",
        "init-cfg.txt:12: plugin-op-commands: spaces in the list are ignored here, not everywhere",
    ]


def test_the_keys_of_our_own(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text("rules: []\n")
    text = """\
everwall-geneve-sources=10.0.1.0/24, 10.0.2.7
everwall-health-port=8080
everwall-max-sessions=5000
everwall-join-grace=0.5
everwall-policy=policy.yaml
everwall-data-interface=ens5
everwall-mgmt-interface=ens6
everwall-data-address=10.0.1.9
everwall-port=xdp
everwall-cut-through=off
everwall-control-socket=run/node.sock
everwall-redis-server-name=redis.internal
everwall-redis-user=wall
everwall-redis-prefix=blue-1
everwall-traffic-log=/var/log/everwall.log
"""
    cfg, warnings = parse_init_cfg(text, tmp_path / "init-cfg.txt")
    assert warnings == []
    assert cfg == InitCfg(
        file=str(tmp_path / "init-cfg.txt"),
        geneve_sources=(ipaddress.IPv4Network("10.0.1.0/24"), ipaddress.IPv4Network("10.0.2.7/32")),
        health_port=8080,
        max_sessions=5000,
        join_grace_s=0.5,
        policy=tmp_path / "policy.yaml",
        data_interface="ens5",
        mgmt_interface="ens6",
        data_address=ipaddress.IPv4Address("10.0.1.9"),
        port="xdp",
        cut_through=False,
        control_socket=tmp_path / "run/node.sock",
        redis_server_name="redis.internal",
        redis_user="wall",
        redis_prefix="blue-1",
        traffic_log=Path("/var/log/everwall.log"),
    )


def test_an_empty_file_is_a_node_that_forwards_nothing_and_says_so() -> None:
    cfg, warnings = parse("")
    assert (cfg, warnings) == (InitCfg(file="init-cfg.txt"), [])
    assert cfg.notes == (
        "session resiliency is off: set-sess-ress:True is not in plugin-op-commands",
        "GENEVE is refused: aws-gwlb-inspect:enable is not in plugin-op-commands",
    )


ON = "plugin-op-commands=set-sess-ress:True"
STORE = "redis-endpoint=10.0.0.5:6379"
KEY = f"everwall-cluster-secret={SECRET}"


@pytest.mark.parametrize(
    ("lines", "enabled", "why"),
    [
        ([STORE, KEY], False, "set-sess-ress:True is not in plugin-op-commands"),
        ([STORE, KEY, "plugin-op-commands=set-sess-ress:False"], False, "set-sess-ress:True is not in"),
        ([ON, KEY], False, "redis-endpoint is not set"),
        ([ON, KEY, "redis-endpoint="], False, "redis-endpoint is not set"),
        ([ON, STORE], False, "no everwall-cluster-secret: nothing is written or restored"),
        ([ON, STORE, KEY], True, "sessions are kept in 10.0.0.5:6379 over TLS"),
        (
            [ON, KEY, "redis-endpoint=[::1]:7000", "everwall-redis-tls=no"],
            True,
            "sessions are kept in [::1]:7000 without TLS",
        ),
        (
            [
                ON,
                KEY,
                "everwall-redis-sentinel=a:26379,[2001:db8::5]:26379",
                "everwall-redis-sentinel-service=fw",
            ],
            True,
            "sessions are kept in fw (Sentinel: a:26379, [2001:db8::5]:26379) over TLS",
        ),
        (
            [ON, KEY, "everwall-redis-cluster=10.0.0.1:7000,10.0.0.2:7000"],
            True,
            "sessions are kept in the cluster of 10.0.0.1:7000, 10.0.0.2:7000 over TLS",
        ),
        (
            [ON, KEY, "everwall-redis-cluster=127.0.0.1:7000,localhost:7001", "everwall-redis-tls=no"],
            True,
            "sessions are kept in the cluster of 127.0.0.1:7000, localhost:7001 without TLS",
        ),
    ],
)
def test_resiliency_is_on_or_off_for_a_reason(lines: list[str], enabled: bool, why: str) -> None:
    resiliency = read("\n".join(lines)).resiliency
    assert resiliency.enabled is enabled
    assert resiliency.why.startswith(why)


@pytest.mark.parametrize("token", ["set-sess-ress:True", "setsess-ress:True", "set-sess-ress:true"])
def test_both_spellings_of_the_resiliency_token_are_understood(token: str) -> None:
    assert read(f"plugin-op-commands={token}").session_resiliency


@pytest.mark.parametrize(
    "text", ["a,aws-gwlb-inspect:enable", "aws-gwlb-inspect:enable ,, b", "x aws-gwlb-inspect:enable"]
)
def test_unknown_tokens_are_warned_of_and_do_not_hide_known_ones(text: str) -> None:
    cfg, warnings = parse(f"plugin-op-commands={text}")
    assert cfg.gwlb_inspect
    assert any("unknown command" in warning for warning in warnings)


@pytest.mark.parametrize("token", UNUSED_TOKENS)
def test_tokens_that_are_not_used_are_named_with_the_reason(token: str) -> None:
    (warning,) = parse(f"plugin-op-commands={token}:enable")[1]
    assert warning == (
        f"init-cfg.txt:1: plugin-op-commands: '{token}:enable' is recognised, not used by Everwall, "
        f"because {UNUSED_TOKENS[token]}"
    )


def test_the_number_of_workers_is_the_vendors_word_or_ours() -> None:
    assert read("").workers == 1
    assert read("plugin-op-commands=set-dp-cores:4").workers == 4
    assert read("plugin-op-commands=set-dp-cores:4\neverwall-workers=2").workers == 2
    assert read("plugin-op-commands=set-dp-cores:4\neverwall-workers=0").workers == 4
    assert read("everwall-workers=2\neverwall-worker-cores=2,0").worker_cores == (2, 0)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("plugin-op-commands=set-dp-cores:0", "set-dp-cores:1 to set-dp-cores:64"),
        ("plugin-op-commands=set-dp-cores", "set-dp-cores:1 to set-dp-cores:64"),
        ("everwall-workers=65", "a whole number from 0 to 64"),
        ("everwall-worker-cores=0,0", "each once"),
        ("everwall-worker-cores=0,x", "numbers of processors"),
    ],
)
def test_a_number_of_workers_that_cannot_be_is_an_error(line: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        read(line)


def test_modes_may_be_parted_by_spaces_or_commas() -> None:
    for text in ("jumbo-frame mgmt-interface-swap", "jumbo-frame,mgmt-interface-swap"):
        cfg, warnings = parse(f"op-command-modes={text}")
        assert (cfg.mgmt_interface_swap, cfg.jumbo_frame) == (True, True)
        assert warnings == []
    (warning,) = parse("op-command-modes=multi-vsys")[1]
    assert "multi-vsys is recognised, not used by Everwall, because a node has one policy" in warning
    (warning,) = parse("op-command-modes=mgmt-interface-swop")[1]
    assert warning.endswith("unknown mode 'mgmt-interface-swop' (did you mean mgmt-interface-swap?)")


def test_the_key_of_user_data_for_the_swap_says_which_one_counts() -> None:
    cfg, (warning,) = parse("mgmt-interface-swap=enable")
    assert not cfg.mgmt_interface_swap
    assert "op-command-modes=mgmt-interface-swap is what counts in a file" in warning


@pytest.mark.parametrize(
    ("text", "host", "port", "shown", "loopback"),
    [
        ("10.0.0.5:6379", "10.0.0.5", 6379, "10.0.0.5:6379", False),
        ("127.0.0.1:1", "127.0.0.1", 1, "127.0.0.1:1", True),
        ("127.8.9.1:1", "127.8.9.1", 1, "127.8.9.1:1", True),
        ("[2001:db8::5]:6379", "2001:db8::5", 6379, "[2001:db8::5]:6379", False),
        ("[::1]:65535", "::1", 65535, "[::1]:65535", True),
        ("localhost:6379", "localhost", 6379, "localhost:6379", True),
        ("redis.example.com.:6379", "redis.example.com.", 6379, "redis.example.com.:6379", False),
        ("master.a_b-c.x1.use1.cache:6379", "master.a_b-c.x1.use1.cache", 6379, None, False),
        ("localhost.example.com:6379", "localhost.example.com", 6379, None, False),
    ],
)
def test_redis_endpoints(text: str, host: str, port: int, shown: str | None, loopback: bool) -> None:
    endpoint = read(f"redis-endpoint={text}").redis_endpoint
    assert endpoint == RedisEndpoint(host, port)
    assert str(endpoint) == (shown or text)
    assert endpoint.loopback is loopback


def test_line_ends_marks_comments_and_spaces_are_forgiven() -> None:
    cfg, warnings = parse("\ufeff# c\r\n\r\n  # c\r\n everwall-health-port = 8080 \r\nhostname=a\r\n")
    assert (cfg.health_port, cfg.hostname) == (8080, "a")
    assert warnings == [
        "init-cfg.txt:4: everwall-health-port: spaces around key and value are ignored here, not everywhere"
    ]


def test_empty_values_are_as_if_not_written() -> None:
    cfg, warnings = parse("".join(f"{key}=\n" for key in (*USED_KEYS, *UNUSED_KEYS)))
    assert cfg == InitCfg(file="init-cfg.txt")
    assert len(warnings) == len(USED_KEYS) - len(NETWORKING_KEYS), (
        "the vendor's samples are full of empty ones: not a word"
    )


@pytest.mark.parametrize("port", ["raw", "udp"])
def test_a_cut_through_that_the_port_cannot_have_is_warned_of(port: str) -> None:
    cfg, (warning,) = parse(f"everwall-port={port}\neverwall-cut-through=on\n")
    assert cfg.port == port
    assert warning == (
        f"init-cfg.txt:2: everwall-cut-through: not used: everwall-port is {port}, and only xdp has it"
    )
    assert parse(f"everwall-port={port}\n")[1] == [], "on is the default: nobody asked for anything"
    assert parse("everwall-cut-through=on\n")[1] == [], "auto may find the xdp port"


def test_believing_everybody_is_warned_of() -> None:
    cfg, warnings = parse("everwall-geneve-sources=0.0.0.0/0\n")
    assert [str(source) for source in cfg.geneve_sources or ()] == ["0.0.0.0/0"]
    (warning,) = [text for text in warnings if "geneve-sources" in text]
    assert warning.startswith("init-cfg.txt:1: everwall-geneve-sources: 0.0.0.0/0: whoever reaches")
    assert not [text for text in parse("everwall-geneve-sources=0.0.0.0/1\n")[1] if "whoever" in text]


def test_unknown_keys_are_warned_of() -> None:
    _, warnings = parse("redis-auht=hunter2\nfavourite-colour=blue\nQUJD=\n")
    assert warnings == [
        "init-cfg.txt:1: redis-auht: unknown key (did you mean redis-auth?)",
        "init-cfg.txt:2: favourite-colour: unknown key",
        "init-cfg.txt:3: (a key that is not shown): unknown key",
    ]


@pytest.mark.parametrize(
    "text",
    [SECRET, SECRET.upper(), base64.b64encode(bytes.fromhex(SECRET)).decode()],
)
def test_the_cluster_secret_is_hexadecimal_or_base64(text: str) -> None:
    secret = read(f"everwall-cluster-secret={text}").cluster_secret
    assert secret is not None
    assert secret.get_secret_value() == bytes.fromhex(SECRET)


def test_the_cluster_secret_may_stand_in_a_file_of_its_own(tmp_path: Path) -> None:
    place = tmp_path / "secret"
    place.write_text(SECRET + "\n")
    place.chmod(0o600)
    text = "everwall-cluster-secret-file=secret\n"
    cfg, warnings = parse_init_cfg(text, tmp_path / "init-cfg.txt")
    assert warnings == []
    assert cfg.cluster_secret is not None
    assert cfg.cluster_secret.get_secret_value() == bytes.fromhex(SECRET)
    place.chmod(0o644)
    (warning,) = parse_init_cfg(text, tmp_path / "init-cfg.txt")[1]
    assert "can be read by others" in warning
    place.write_text("short")
    with pytest.raises(ConfigError, match="at least 32 random bytes"):
        parse_init_cfg(text, tmp_path / "init-cfg.txt")


def test_a_second_secret_is_read_beside_the_first_in_whatever_form(tmp_path: Path) -> None:
    place = tmp_path / "second"
    place.write_text("ab" * 16 + SECRET[:32] + "\n")
    place.chmod(0o600)
    first = bytes.fromhex(SECRET)
    assert read(KEY).cluster_secrets == (first,)
    assert read("").cluster_secrets == ()
    text = f"{KEY}\neverwall-cluster-secret-second-file=second\n"
    cfg, _ = parse_init_cfg(text, tmp_path / "init-cfg.txt")
    assert cfg.cluster_secrets == (first, bytes.fromhex(place.read_text()))
    other = SECRET[2:] + SECRET[:2]
    assert read(f"{KEY}\neverwall-cluster-secret-second={other}").cluster_secrets[1] == bytes.fromhex(other)
    assert other not in str(parse(f"{KEY}\neverwall-cluster-secret-second={other}"))


def test_a_secret_that_does_not_look_random_is_warned_of() -> None:
    (warning,) = parse(f"everwall-cluster-secret={'00' * 32}")[1]
    assert "does not look random" in warning


def test_secrets_are_in_no_repr_and_no_log(caplog: pytest.LogCaptureFixture) -> None:
    text = f"redis-auth=hunter2\neverwall-cluster-secret={SECRET}\nvm-auth-key=hunter2\nredis-auht=hunter2\n"
    cfg, warnings = parse(text)
    caplog.set_level(logging.DEBUG)
    logging.getLogger().info("%s %r %s %s", cfg, cfg, asdict(cfg), warnings)
    said = f"{caplog.text} {cfg} {warnings} {cfg.notes} {cfg.resiliency}"
    assert "everwall-cluster-secret" in cfg.resiliency.why or not cfg.resiliency.enabled
    assert "hunter2" not in said
    for form in (SECRET, repr(bytes.fromhex(SECRET))):
        assert form not in said


@pytest.mark.parametrize(
    ("lines", "present", "data", "mgmt"),
    [
        ("", ["eth0", "eth1"], "eth1", "eth0"),
        ("op-command-modes=mgmt-interface-swap", ["eth0", "eth1"], "eth0", "eth1"),
        ("op-command-modes=mgmt-interface-swap", ["eth0", "eth1", "eth2"], "eth0", "eth1"),
        ("", ["eth0"], "eth0", "eth0"),
        ("op-command-modes=mgmt-interface-swap", ["eth0"], "eth0", "eth0"),
        ("everwall-data-interface=eth0", ["eth0", "eth1"], "eth0", "eth1"),
        ("everwall-mgmt-interface=eth1", ["eth0", "eth1"], "eth0", "eth1"),
        ("everwall-mgmt-interface=eth0", ["eth0", "eth1", "eth2"], "eth1", "eth0"),
        ("everwall-data-interface=a\neverwall-mgmt-interface=b", ["eth0"], "a", "b"),
        ("", [], None, None),
    ],
)
def test_which_interface_carries_data(
    lines: str, present: list[str], data: str | None, mgmt: str | None
) -> None:
    assert read(lines).interfaces(present) == (data, mgmt)


LINES = st.lists(
    st.one_of(
        st.text(max_size=40),
        st.builds(
            "{}={}".format,
            st.sampled_from((*USED_KEYS, *UNUSED_KEYS)),
            st.one_of(st.text(max_size=40), st.text("0123456789abcdef:/.,-[]=+ ", max_size=80)),
        ),
    ),
    max_size=8,
)


@given(LINES)
@example(["everwall-policy=\udcff"])
@example(["everwall-policy=" + "a" * 5000])
@example(["everwall-cluster-secret-file=."])
@example(["everwall-cluster-secret-file=" + "/a" * 3000])
@example(["redis-certificate=" + base64.b64encode(b"-----BEGIN CERTIFICATE-----").decode()])
def test_any_lines_are_read_or_refused_by_name(lines: list[str]) -> None:
    said = ""
    try:
        _, warnings = parse("\n".join(lines))
    except ConfigError as error:
        said = str(error)
        warnings = []
    assert said.isprintable()
    assert all(warning.isprintable() for warning in warnings)


def test_the_page_names_every_key_word_and_default() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    table = page.split("## Keys\n")[1].split("\n#")[0]
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    named = [row.split("`")[1] for row in rows]
    for word in (*USED_KEYS, *UNUSED_KEYS, SWAP_KEY, BUCKET_KEY, SECRET_NAME_KEYS[0]):
        assert named.count(word) == 1, f"{word} has one row"
    assert len(named) == len(USED_KEYS) + len(UNUSED_KEYS) + 3, "and nothing else has one"
    for word in (*TOKENS, *MODES, *SECRET_NAME_KEYS):
        assert f"`{word}" in page, word
    for word, reason in (UNUSED_KEYS | UNUSED_TOKENS | UNUSED_MODES).items():
        row = next(row for row in page.splitlines() if row.startswith(f"| `{word}"))
        assert f"not used, because {reason}" in row, word
    for name in ("health_port", "max_sessions", "join_grace_s"):
        default = next(field.default for field in fields(InitCfg) if field.name == name)
        key = f"everwall-{name.removesuffix('_s').replace('_', '-')}"
        row = next(row for row in rows if row.startswith(f"| `{key}`"))
        assert f"| {default:g} |" in row, row


def test_the_topology_of_the_store_is_told() -> None:
    cfg, warnings = parse(
        "everwall-redis-sentinel=a:26379, b:26380\n"
        "everwall-redis-sentinel-service=sessions\n"
        "everwall-redis-sentinel-user=watch\n"
        "everwall-redis-sentinel-auth=guess me\n"
        "everwall-wait-replicas=2"
    )
    assert warnings == []
    assert [str(server) for server in cfg.redis_sentinels] == ["a:26379", "b:26380"]
    assert (cfg.redis_sentinel_service, cfg.redis_sentinel_user, cfg.wait_replicas) == (
        "sessions",
        "watch",
        2,
    )
    assert cfg.redis_sentinel_auth is not None
    assert cfg.redis_sentinel_auth.get_secret_value() == "guess me"
    assert "guess me" not in repr(cfg)


def test_what_belongs_to_sentinels_is_named_where_there_are_none() -> None:
    (warning,) = parse("redis-endpoint=a:1\neverwall-redis-sentinel-service=x")[1]
    assert warning.endswith("everwall-redis-sentinel-service: not used: everwall-redis-sentinel is not set")


def test_a_password_may_be_in_a_file_that_only_its_owner_reads(tmp_path: Path) -> None:
    file = tmp_path / "redis-auth"
    file.write_text("open sesame\n")
    file.chmod(0o600)
    cfg, warnings = parse_init_cfg("everwall-redis-auth-file=redis-auth", tmp_path / "init-cfg.txt")
    assert (cfg.redis_auth_file, warnings) == (file, [])
    file.chmod(0o644)
    (warning,) = parse_init_cfg("everwall-redis-auth-file=redis-auth", tmp_path / "init-cfg.txt")[1]
    assert "can be read by others" in warning
