"""What goes before what: user data, secret, init-cfg.txt, bootstrap.xml; and where the cluster secret comes from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everwall.bootstrap.entries import Layer, read_secret
from everwall.bootstrap.faults import BootstrapError, ClusterSecretError
from everwall.bootstrap.init_cfg import InitCfg
from everwall.bootstrap.keys import UNUSED_KEYS, USED_KEYS, USER_DATA_KEYS
from everwall.bootstrap.load import Given, given_by_environment, load_bootstrap
from everwall.bootstrap.machine import Machine
from everwall.bootstrap.networking import Networking
from everwall.bootstrap.parse import parse_layers
from everwall.bootstrap.secret import parse_secret
from everwall.bootstrap.user_data import bucket_of, decode_user_data, secret_name_of
from everwall.config import ConfigError

SECRET = "c0ffee5a17b3449d8e60f1a2b3c4d5e6f708192a3b4c5d6e7f80917263544536"
OTHER = SECRET[::-1]
VENDOR = "plugin-op-commands=set-sess-ress:True,aws-gwlb-inspect:enable\nredis-endpoint=10.0.0.5:6379\n"
XML = """<config><devices><entry name="localhost.localdomain"><deviceconfig><system>
<hostname>of-the-xml</hostname><type><static/></type><ip-address>10.0.0.9</ip-address>
<netmask>255.255.255.0</netmask><default-gateway>10.0.0.1</default-gateway>
<dns-setting><servers><primary>10.0.0.2</primary><secondary>10.0.0.3</secondary></servers></dns-setting>
</system></deviceconfig></entry></devices></config>
"""


def package(folder: Path, init_cfg: str, xml: str | None = None, **files: str) -> Path:
    config = folder / "config"
    config.mkdir(parents=True)
    (config / "init-cfg.txt").write_text(init_cfg)
    if xml is not None:
        (config / "bootstrap.xml").write_text(xml)
    for name, text in files.items():
        (config / name).write_text(text)
    return folder


def read(source: Path | str, given: Given | None = None, platform: str = "") -> InitCfg:
    return load_bootstrap(source, given, Machine(platform=platform)).config


def dns(config: InitCfg) -> list[str]:
    return [str(server) for server in config.networking.dns]


# Layers -----------------------------------------------------------------------------------------------


def test_init_cfg_goes_before_bootstrap_xml(tmp_path: Path) -> None:
    loaded = load_bootstrap(
        package(tmp_path, "hostname=own\ndns-primary=10.0.0.7\nnetmask=\n", XML), machine=Machine()
    )
    config, xml = loaded.config, tmp_path / "config" / "bootstrap.xml"
    assert config.hostname == "own"
    assert dns(config) == ["10.0.0.7", "10.0.0.3"]
    assert config.networking.type == "static"
    assert str(config.networking.address) == "10.0.0.9/24", "an empty value does not hide the XML's"
    assert config.policy == xml
    init = tmp_path / "config" / "init-cfg.txt"
    assert loaded.read == (str(init), str(xml))
    assert loaded.warnings == (
        f"{xml}:2: hostname: not used, because {init}:1 says it too",
        f"{xml}:4: dns-primary: not used, because {init}:2 says it too",
    )


def test_dhcp_in_init_cfg_leaves_the_addresses_of_the_xml_unused(tmp_path: Path) -> None:
    loaded = load_bootstrap(package(tmp_path, "type=dhcp-client\n", XML), machine=Machine())
    assert loaded.config.networking.address is None
    assert sum("not used, because type is not static" in warning for warning in loaded.warnings) == 3


def test_a_policy_of_our_own_goes_before_that_of_the_xml(tmp_path: Path) -> None:
    folder = package(
        tmp_path, "everwall-policy=policy.yaml\n", XML, **{"policy.yaml": "rules: []\n", "more.txt": ""}
    )
    loaded = load_bootstrap(folder, machine=Machine())
    assert loaded.config.policy == tmp_path / "config" / "policy.yaml"
    assert any(
        "its policy is not used, because everwall-policy names another" in text for text in loaded.warnings
    )
    assert [note for note in loaded.notes if "no key names it" in note] == [
        f"{tmp_path}: config/more.txt: not used, because no key names it"
    ]


def test_a_file_is_an_init_cfg_whatever_it_is_called_and_nothing_beside_it_is_read(tmp_path: Path) -> None:
    folder = package(tmp_path, "hostname=all\n", XML, **{"0078-init-cfg.txt": "hostname=one\n"})
    config = read(folder / "config" / "0078-init-cfg.txt")
    assert (config.hostname, config.policy, dns(config)) == ("one", None, [])


def test_a_folder_called_as_a_source_needs_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path / "user-data", "hostname=own\n")
    monkeypatch.chdir(tmp_path)
    assert read("./user-data").hostname == "own"


@pytest.mark.parametrize(
    ("text", "swap"),
    [
        ("mgmt-interface-swap=enable", True),
        ("mgmt-interface-swap=disable", False),
        ("mgmt-interface-swap=", False),
        ("op-command-modes=mgmt-interface-swap;hostname=a", True),
        ("hostname=a", False),
    ],
)
def test_the_key_for_the_swap_counts_in_user_data(tmp_path: Path, text: str, swap: bool) -> None:
    (tmp_path / "data").write_text(text)
    assert read(f"user-data:{tmp_path / 'data'}").mgmt_interface_swap is swap


def test_user_data_may_have_comments_and_blanks(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(
        b"\xef\xbb\xbf# ours; really=not\r\n\r\nhostname=a; everwall-health-port=81 ;;\r\n"
    )
    loaded = load_bootstrap(f"user-data:{tmp_path / 'data'}", machine=Machine())
    assert (loaded.config.hostname, loaded.config.health_port, loaded.warnings) == ("a", 81, ())


# Networking -------------------------------------------------------------------------------------------

STATIC = "type=static\nip-address=10.0.0.5\nnetmask=255.255.255.0\ndefault-gateway=10.0.0.1\n"


def test_static_networking_is_read(tmp_path: Path) -> None:
    path = tmp_path / "init-cfg.txt"
    path.write_text(STATIC + "ipv6-address=2001:db8::5/64\nipv6-default-gateway=fe80::1\n")
    told = read(path).networking
    assert (told.type, str(told.address), str(told.gateway)) == ("static", "10.0.0.5/24", "10.0.0.1")
    assert (str(told.address6), str(told.gateway6)) == ("2001:db8::5/64", "fe80::1")


@pytest.mark.parametrize("platform", ["aws", "azure"])
def test_clouds_give_the_address_and_only_the_gateway_is_needed(tmp_path: Path, platform: str) -> None:
    path = tmp_path / "init-cfg.txt"
    path.write_text("type=static\nip-address=10.0.0.5\nnetmask=\ndefault-gateway=10.0.0.1\n")
    loaded = load_bootstrap(path, machine=Machine(platform=platform))
    assert loaded.config.networking.address is None
    assert str(loaded.config.networking.gateway) == "10.0.0.1"
    assert [warning for warning in loaded.warnings if "ip-address" in warning] == [
        f"{path}:2: ip-address: not used, because the cloud gives the address"
    ]
    with pytest.raises(ConfigError, match="netmask"):
        read(path, platform="gcp")


def test_without_a_type_the_machine_has_whatever_it_has(tmp_path: Path) -> None:
    path = tmp_path / "init-cfg.txt"
    path.write_text("hostname=a\nip-address=10.0.0.5\ndns-primary=10.0.0.2\ndns-secondary=10.0.0.2\n")
    loaded = load_bootstrap(path, machine=Machine())
    assert loaded.config.networking == Networking(dns=loaded.config.networking.dns)
    assert dns(loaded.config) == ["10.0.0.2"]
    assert loaded.warnings == (
        f"{path}:2: ip-address: not used, because type is not static",
        f"{path}:4: dns-secondary: the same as dns-primary",
    )


# The cluster secret -----------------------------------------------------------------------------------


@pytest.fixture
def vendor(tmp_path: Path) -> Path:
    path = tmp_path / "init-cfg.txt"
    path.write_text(VENDOR)
    return path


@pytest.fixture(autouse=True)
def no_secret_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EVERWALL_CLUSTER_SECRET", "EVERWALL_CLUSTER_SECRET_FILE", "EVERWALL_CLUSTER_SECRET_ID"):
        monkeypatch.delenv(name, raising=False)


def test_a_vendor_package_boots_with_resiliency_held_back(vendor: Path) -> None:
    config = read(vendor)
    assert not config.resiliency.enabled
    assert config.notes == (
        "session resiliency is held back: no everwall-cluster-secret: nothing is written or restored",
    )


@pytest.mark.parametrize("change", [("set-sess-ress:True,", ""), ("redis-endpoint=10.0.0.5:6379\n", "")])
def test_what_was_not_asked_for_is_not_held_back_but_off(vendor: Path, change: tuple[str, str]) -> None:
    vendor.write_text(VENDOR.replace(*change))
    assert read(vendor).notes[0].startswith("session resiliency is off: ")


def test_the_environment_may_hold_the_secret(vendor: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERWALL_CLUSTER_SECRET", SECRET)
    given = given_by_environment()
    assert SECRET not in repr(given)
    assert read(vendor, given).standing == "on"
    monkeypatch.setenv("EVERWALL_CLUSTER_SECRET", "hunter2")
    with pytest.raises(ClusterSecretError, match=r"^EVERWALL_CLUSTER_SECRET: expected at least 32") as caught:
        given_by_environment()
    assert "hunter2" not in str(vars(caught.value))


def test_only_one_place_may_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ClusterSecretError, match="only one of"):
        given_by_environment(Path("x"), "y")
    monkeypatch.setenv("EVERWALL_CLUSTER_SECRET", SECRET)
    with pytest.raises(ClusterSecretError, match="only one of"):
        given_by_environment(Path("x"))


def test_a_file_may_bring_the_secret_after_the_start(vendor: Path, tmp_path: Path) -> None:
    place = tmp_path / "late"
    loaded = load_bootstrap(vendor, Given(secret_file=place), Machine())
    assert loaded.config.standing == "held back"
    assert loaded.config.resiliency.why.endswith(f"until it comes from {place}")
    late, said = loaded.late_secret, list[str]()
    assert late is not None
    assert late.read(said.append) is None
    place.write_text("half of it")
    with pytest.raises(ClusterSecretError, match="at least 32 random bytes"):
        late.read(said.append)
    place.write_text(SECRET)
    place.chmod(0o600)
    assert late.read(said.append) == parse_secret(SECRET)
    assert said == []
    loaded = load_bootstrap(vendor, Given(secret_file=place), Machine())
    assert (loaded.config.standing, loaded.late_secret, loaded.warnings) == ("on", None, ())


def test_what_is_given_at_the_start_goes_before_the_package(vendor: Path) -> None:
    vendor.write_text(f"{VENDOR}everwall-cluster-secret={OTHER}\n")
    loaded = load_bootstrap(vendor, Given(secret=parse_secret(SECRET)), Machine())
    assert loaded.config.cluster_secret == parse_secret(SECRET)
    (warning,) = loaded.warnings
    assert warning == f"{vendor}: its cluster secret is not used, because of EVERWALL_CLUSTER_SECRET"


def test_a_secret_that_somebody_typed_or_others_can_read_is_warned_of(vendor: Path, tmp_path: Path) -> None:
    place = tmp_path / "secret"
    place.write_text("00" * 32)
    place.chmod(0o644)
    warnings = load_bootstrap(vendor, Given(secret_file=place), Machine()).warnings
    assert warnings == (
        f"{place}: can be read by others than its owner",
        f"{place}: does not look random; try: openssl rand -hex 32",
    )


def test_a_secret_that_comes_late_is_looked_over_like_one_that_is_there(vendor: Path, tmp_path: Path) -> None:
    place = tmp_path / "late"
    vendor.write_text(
        f"{VENDOR}everwall-cluster-secret-id=x\neverwall-cluster-secret-second={OTHER}\n", encoding="utf-8"
    )
    late, said = load_bootstrap(vendor, Given(secret_file=place), Machine()).late_secret, list[str]()
    assert late is not None
    place.write_text("00" * 32)
    place.chmod(0o644)
    assert late.read(said.append) is not None
    assert said == [
        f"{place}: can be read by others than its owner",
        f"{place}: does not look random; try: openssl rand -hex 32",
    ]
    place.write_text("00" * 31)
    with pytest.raises(ClusterSecretError, match="at least 32 random bytes"):
        late.read(said.append)
    place.write_text(OTHER)
    with pytest.raises(ClusterSecretError, match="the second is the first again"):
        late.read(said.append)


# Anything ---------------------------------------------------------------------------------------------

PIECES = st.one_of(
    st.text(max_size=30),
    st.builds(
        "{}={}".format,
        st.sampled_from((*USED_KEYS, *UNUSED_KEYS, *USER_DATA_KEYS)),
        st.one_of(st.text(max_size=30), st.text("0123456789abcdef:/.,-[]=+@ ", max_size=60)),
    ),
)


def read_or_refused(layer_of: Callable[[], Layer]) -> None:
    said: list[str] = []
    try:
        layer = layer_of()
        bucket_of(layer)
        secret_name_of(layer)
        said = parse_layers([layer], "aws")[1]
    except BootstrapError as error:
        said = [str(error)]
    assert all(text.isprintable() for text in said)


@given(st.lists(PIECES, max_size=8), st.sampled_from(["\n", ";", "\r\n", " ; "]))
def test_any_user_data_is_read_or_refused_by_name(pieces: list[str], between: str) -> None:
    data = between.join(pieces).encode("utf-8", "surrogatepass")
    read_or_refused(lambda: decode_user_data(data, "user-data"))


@given(
    st.dictionaries(
        st.sampled_from(USED_KEYS) | st.text(max_size=9),
        st.none()
        | st.booleans()
        | st.integers()
        | st.text(max_size=20)
        | st.lists(st.text(max_size=3), max_size=2),
        max_size=4,
    )
)
def test_any_secret_is_read_or_refused_by_name(pairs: dict[str, object]) -> None:
    read_or_refused(lambda: read_secret(json.dumps(pairs), "secret:fw"))
