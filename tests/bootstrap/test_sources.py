"""Sources outside this machine: the metadata service by IMDSv2, a bucket, a secret; and nobody is asked unbidden."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from everwall.bootstrap import sources
from everwall.bootstrap.faults import ClusterSecretError, NoConfigurationError, PackageError, SourceError
from everwall.bootstrap.load import Given, load_bootstrap
from everwall.bootstrap.machine import Machine
from everwall.limits import METADATA_ATTEMPTS, PACKAGE_FILES_MAX, USER_DATA_BYTES_MAX
from tests import needs
from tests.bootstrap.metadata import Metadata

SECRET = "c0ffee5a17b3449d8e60f1a2b3c4d5e6f708192a3b4c5d6e7f80917263544536"
USER_DATA = "/latest/user-data"
REGION = "eu-central-1"
NOWHERE = Machine()
_LOADER: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def no_credentials_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv(sources.METADATA_VARIABLE, "http://127.0.0.1:9")
    monkeypatch.setattr(sources, "_AGAIN_S", 0.0)
    monkeypatch.setattr(
        sources, "METADATA_TIMEOUT_S", 30.0
    )  # each question is counted: none is asked twice for being slow


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> Iterator[Metadata]:
    served = Metadata()
    monkeypatch.setenv(sources.METADATA_VARIABLE, served.url)
    yield served
    served.close()


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """boto3's module, with clouds of moto behind it."""
    needs.module("moto")
    needs.module("boto3")
    import boto3
    import botocore.session
    from moto import mock_aws

    # Each client reads megabytes of descriptions anew; here they are read once.
    loader = _LOADER.setdefault("one", botocore.session.create_loader())
    monkeypatch.setattr(botocore.session, "create_loader", lambda _: loader)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    with mock_aws():
        yield boto3


def bucket_of(aws: Any, files: dict[str, str], name: str = "my-bootstrap") -> None:
    client = aws.client("s3")
    client.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})
    for key, text in files.items():
        client.put_object(Bucket=name, Key=key, Body=text.encode())


# The metadata service ---------------------------------------------------------------------------------


def test_user_data_is_asked_for_with_a_token_and_parted_by_semicolons_or_lines(metadata: Metadata) -> None:
    metadata.answers[USER_DATA] = (
        b"mgmt-interface-swap=enable;hostname=fw-a\n"
        b"plugin-op-commands=set-sess-ress:True,aws-gwlb-inspect:enable;redis-endpoint=10.0.0.5:6379"
    )
    read = load_bootstrap("user-data", machine=NOWHERE)
    assert read.config.mgmt_interface_swap
    assert (read.config.hostname, str(read.config.redis_endpoint)) == ("fw-a", "10.0.0.5:6379")
    assert (read.config.session_resiliency, read.config.gwlb_inspect) == (True, True)
    assert read.read == ("user-data",)
    assert read.warnings == ()
    assert metadata.asked == [("PUT", "/latest/api/token"), ("GET", USER_DATA)]
    assert metadata.without_token == []


def test_a_busy_service_is_asked_again(metadata: Metadata) -> None:
    metadata.answers[USER_DATA] = b"hostname=fw-a"
    metadata.busy = METADATA_ATTEMPTS - 1
    assert load_bootstrap("user-data", machine=NOWHERE).config.hostname == "fw-a"
    metadata.busy = METADATA_ATTEMPTS
    with pytest.raises(SourceError, match="no token: status 503"):
        load_bootstrap("user-data", machine=NOWHERE)


def test_an_instance_without_user_data_says_so(metadata: Metadata) -> None:
    with pytest.raises(SourceError, match="started without any"):
        load_bootstrap("user-data", machine=NOWHERE)


def test_a_service_that_is_switched_off_is_not_asked_twice_nor_without_a_token(metadata: Metadata) -> None:
    metadata.disabled = True
    with pytest.raises(SourceError, match="hop limit"):
        load_bootstrap("user-data", machine=NOWHERE)
    assert metadata.asked == [("PUT", "/latest/api/token")]


def test_a_machine_that_is_no_instance_says_so() -> None:
    with pytest.raises(SourceError, match="is this an EC2 instance"):
        load_bootstrap("user-data", machine=NOWHERE)


def test_more_than_any_user_data_is_refused(metadata: Metadata) -> None:
    metadata.answers[USER_DATA] = b"#" * (USER_DATA_BYTES_MAX + 1)
    with pytest.raises(SourceError, match="at most 65536 bytes"):
        load_bootstrap("user-data", machine=NOWHERE)


def test_local_sources_touch_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        pytest.fail("a socket was made, and nobody had named a source that needs one")

    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "init-cfg.txt").write_text(
        "hostname=fw-a\nredis-endpoint=redis.example.com:6379\n"
    )
    (tmp_path / "user-data").write_text("hostname=fw-a")
    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for source in (
        str(tmp_path),
        str(tmp_path / "config" / "init-cfg.txt"),
        f"user-data:{tmp_path / 'user-data'}",
    ):
        assert load_bootstrap(source).config.hostname == "fw-a"


# Buckets ----------------------------------------------------------------------------------------------


def test_a_package_in_a_folder_of_a_bucket(aws: Any) -> None:
    bucket_of(
        aws,
        {
            "firewalls/config/": "",
            "firewalls/config/init-cfg.txt": "type=dhcp-client\nhostname=fw-a\neverwall-policy=policy.yaml\n",
            "firewalls/config/policy.yaml": "rules: []\n",
            "firewalls/content/panupv2-all-apps": "x" * 1000,
            "firewalls/license/authcodes": "I1234567",
            "firewalls/software/": "",
            "other/config/init-cfg.txt": "hostname=fw-b\n",
        },
    )
    read = load_bootstrap("s3://my-bootstrap/firewalls", machine=NOWHERE)
    assert read.config.hostname == "fw-a"
    assert read.read == ("s3://my-bootstrap/firewalls/config/init-cfg.txt",)
    assert read.config.policy is not None
    assert read.config.policy.read_text() == "rules: []\n"
    assert read.fetched is not None
    folder = read.fetched.folder
    assert folder.stat().st_mode & 0o077 == 0
    assert sorted(path.name for path in folder.rglob("*")) == ["config", "init-cfg.txt", "policy.yaml"]
    assert any("content/panupv2-all-apps: not used" in note for note in read.notes)
    del read
    assert not folder.exists(), "secrets do not stay behind"


def test_the_top_of_a_bucket_is_a_package_too_and_the_serial_number_counts(aws: Any) -> None:
    bucket_of(aws, {"config/init-cfg.txt": "hostname=all\n", "config/0078-init-cfg.txt": "hostname=one\n"})
    assert load_bootstrap("s3://my-bootstrap", machine=NOWHERE).config.hostname == "all"
    assert load_bootstrap("s3://my-bootstrap", machine=Machine(("0078",))).config.hostname == "one"


def test_errors_in_a_bucket_name_the_bucket(aws: Any) -> None:
    bucket_of(aws, {"config/init-cfg.txt": "hostname=fw-a\nredis-endpoint=10.0.0.5\n"})
    with pytest.raises(
        ValueError, match=r"^s3://my-bootstrap/config/init-cfg\.txt:2: redis-endpoint: '10\.0\.0\.5'"
    ):
        load_bootstrap("s3://my-bootstrap", machine=NOWHERE)


def test_user_data_points_to_a_bucket_and_goes_before_what_is_in_it(aws: Any, metadata: Metadata) -> None:
    bucket_of(
        aws,
        {"a/b/config/init-cfg.txt": "type=dhcp-client\nhostname=of-the-bucket\neverwall-health-port=8080\n"},
    )
    metadata.answers[USER_DATA] = (
        b"vmseries-bootstrap-aws-s3bucket=my-bootstrap/a/b;mgmt-interface-swap=enable;hostname=own"
    )
    read = load_bootstrap("user-data", machine=NOWHERE)
    assert read.config.mgmt_interface_swap
    assert (read.config.hostname, read.config.health_port) == ("own", 8080)
    assert read.read == ("user-data", "s3://my-bootstrap/a/b/config/init-cfg.txt")
    (warning,) = read.warnings
    assert warning == (
        "s3://my-bootstrap/a/b/config/init-cfg.txt:2: hostname: not used, because user-data:1 says it too"
    )


def test_the_region_is_the_instances_where_nobody_says_another(
    aws: Any, metadata: Metadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets_of(aws, {"fw": json.dumps({"hostname": "fw-a"})})
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    metadata.answers["/latest/meta-data/placement/region"] = REGION.encode()
    assert load_bootstrap("secret:fw", machine=NOWHERE).config.hostname == "fw-a"
    assert ("GET", "/latest/meta-data/placement/region") in metadata.asked
    metadata.answers.clear()
    with pytest.raises(SourceError, match="give --aws-region"):
        load_bootstrap("secret:fw", machine=NOWHERE)
    assert load_bootstrap("secret:fw", Given(region=REGION), NOWHERE).config.hostname == "fw-a"


@pytest.mark.parametrize(
    ("source", "error", "expected"),
    [
        ("s3://no-such-bucket", SourceError, "a bucket that exists"),
        ("s3://my-bootstrap/nothing", SourceError, "no object with this prefix"),
        ("s3://my-bootstrap/half", NoConfigurationError, "config/init-cfg.txt"),
        ("s3://my-bootstrap/many", PackageError, f"at most {PACKAGE_FILES_MAX} objects"),
        ("secret:no-such-secret", SourceError, "a secret that exists"),
    ],
)
def test_what_aws_does_not_have_is_named(
    aws: Any, source: str, error: type[Exception], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket_of(aws, {"half/license/authcodes": "x", **{f"many/content/{k}": "" for k in range(4)}})
    if "many" in source:
        monkeypatch.setattr(sources, "PACKAGE_FILES_MAX", 3)
        expected = "at most 3 objects"
    with pytest.raises(error, match=expected):
        load_bootstrap(source, machine=NOWHERE)


def test_without_credentials_it_is_said_what_is_missing(metadata: Metadata) -> None:
    needs.module("boto3")
    with pytest.raises(SourceError, match="an instance profile"):
        load_bootstrap("s3://my-bootstrap", Given(region=REGION), NOWHERE)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("AccessDenied", "the permission s3:ListBucket on the bucket and s3:GetObject on its objects"),
        ("PermanentRedirect", "--aws-region"),
        ("SlowDown", "an answer"),
    ],
)
def test_what_aws_refuses_says_which_permission(aws: Any, code: str, expected: str) -> None:
    from botocore.exceptions import ClientError

    with pytest.raises(SourceError, match=f"{expected}.*{code}"), sources._Refusals("s3://b", _PERMISSIONS):
        raise ClientError({"Error": {"Code": code}}, "ListObjectsV2")


_PERMISSIONS = "s3:ListBucket on the bucket and s3:GetObject on its objects"


# Secrets ----------------------------------------------------------------------------------------------


def secrets_of(aws: Any, texts: dict[str, str]) -> dict[str, str]:
    client = aws.client("secretsmanager", region_name=REGION)
    return {name: client.create_secret(Name=name, SecretString=text)["ARN"] for name, text in texts.items()}


def test_a_secret_of_key_value_pairs_is_a_bootstrap(aws: Any) -> None:
    pairs = {
        "mgmt-interface-swap": "enable",
        "vm-auth-key": "0123",
        "license-authcode": "I1234567",
        "plugin-op-commands": "set-sess-ress:True,aws-gwlb-inspect:enable",
        "redis-endpoint": "10.0.0.5:6379",
        "redis-auth": "hunter2",
        "everwall-health-port": 8080,
    }
    arn = secrets_of(aws, {"fw": json.dumps(pairs)})["fw"]
    for name in ("fw", arn):
        read = load_bootstrap(f"secret:{name}", machine=NOWHERE)
        assert read.config.mgmt_interface_swap
        assert read.config.health_port == 8080
        assert read.config.redis_auth is not None
        assert "hunter2" not in str(read)
        said = "\n".join(read.warnings)
        assert "license-authcode: recognised, not used by Everwall, because" in said
        assert "mgmt-interface-swap: counts here; the vendor's firewall wants op-command-modes" in said


@pytest.mark.parametrize("key", ["everwall-bootstrap-secret", "secret_name", "secret-name"])
def test_user_data_names_a_secret_that_says_the_rest(aws: Any, metadata: Metadata, key: str) -> None:
    secrets_of(aws, {"fw": json.dumps({"hostname": "of-the-secret", "redis-auth": "x"})})
    metadata.answers[USER_DATA] = f"{key}=fw\nhostname=own".encode()
    read = load_bootstrap("user-data", machine=NOWHERE)
    assert (read.config.hostname, read.read) == ("own", ("user-data", "secret:fw"))
    assert read.config.redis_auth is not None
    assert read.warnings == ("secret:fw: hostname: not used, because user-data:2 says it too",)


@pytest.mark.parametrize(
    "text", ["hunter2", "[]", '"hunter2"', '{"redis-auth": {"hunter2": 1}}', '{"a": null}', "{"]
)
def test_a_secret_that_is_something_else_is_refused_unseen(aws: Any, text: str) -> None:
    secrets_of(aws, {"fw": text})
    with pytest.raises(ValueError, match="key/value pairs") as caught:
        load_bootstrap("secret:fw", machine=NOWHERE)
    assert "hunter2" not in f"{caught.value} {vars(caught.value)}"


def test_a_key_that_stands_twice_in_a_secret_is_an_error(aws: Any) -> None:
    secrets_of(aws, {"fw": '{"redis-auth": "hunter2", "redis-auth": "hunter3"}'})
    with pytest.raises(ValueError, match="each key once") as caught:
        load_bootstrap("secret:fw", machine=NOWHERE)
    assert "hunter" not in f"{caught.value} {vars(caught.value)}"


def test_bytes_are_no_bootstrap(aws: Any) -> None:
    aws.client("secretsmanager", region_name=REGION).create_secret(Name="fw", SecretBinary=b"hunter2")
    with pytest.raises(SourceError, match="a secret of text"):
        load_bootstrap("secret:fw", machine=NOWHERE)


# The cluster secret from Secrets Manager --------------------------------------------------------------


def vendor_file(tmp_path: Path, more: str = "") -> Path:
    path = tmp_path / "init-cfg.txt"
    path.write_text(
        f"type=dhcp-client\nplugin-op-commands=set-sess-ress:True\nredis-endpoint=10.0.0.5:6379\n{more}"
    )
    return path


@pytest.mark.parametrize("named", ["key", "option"])
def test_the_cluster_secret_comes_from_secrets_manager(aws: Any, tmp_path: Path, named: str) -> None:
    secrets_of(aws, {"cluster": SECRET + "\n"})
    key = "everwall-cluster-secret-id=cluster\n" if named == "key" else ""
    given = Given(secret_id="cluster") if named == "option" else Given()
    read = load_bootstrap(vendor_file(tmp_path, key), given, NOWHERE)
    assert read.config.resiliency.enabled
    assert read.config.cluster_secret is not None
    assert read.config.cluster_secret.get_secret_value() == bytes.fromhex(SECRET)
    assert read.late_secret is None


def test_a_node_starts_without_a_secret_that_is_not_there_yet_and_finds_it_later(
    aws: Any, tmp_path: Path
) -> None:
    read = load_bootstrap(vendor_file(tmp_path), Given(secret_id="cluster"), NOWHERE)
    assert read.config.standing == "held back"
    assert read.config.notes[0] == (
        "session resiliency is held back: no everwall-cluster-secret: nothing is written or restored until it "
        "comes from secret:cluster"
    )
    assert any("a secret that exists" in warning for warning in read.warnings)
    late, said = read.late_secret, list[str]()
    assert late is not None
    with pytest.raises(SourceError):
        late.read(said.append)
    secrets_of(aws, {"cluster": SECRET})
    found = late.read(said.append)
    assert found is not None
    assert found.get_secret_value() == bytes.fromhex(SECRET)
    assert said == []
    aws.client("secretsmanager").put_secret_value(SecretId="cluster", SecretString="5a" * 32)
    assert late.read(said.append) is not None
    assert said == ["secret:cluster: does not look random; try: openssl rand -hex 32"]


def test_a_secret_that_cannot_be_one_stops_the_start(aws: Any, tmp_path: Path) -> None:
    secrets_of(aws, {"cluster": "hunter2"})
    with pytest.raises(ClusterSecretError, match="at least 32 random bytes") as caught:
        load_bootstrap(vendor_file(tmp_path), Given(secret_id="cluster"), NOWHERE)
    assert "hunter2" not in str(caught.value)


def test_without_boto3_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "boto3", None)
    with pytest.raises(SourceError, match="extra `aws`"):
        load_bootstrap("s3://my-bootstrap", machine=NOWHERE)
