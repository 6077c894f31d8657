"""A node whose workers do not run: at a reload its source is read again, and all of it counts or nothing."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from everwall.bootstrap import sources
from everwall.bootstrap.faults import SourceError
from everwall.bootstrap.load import Bootstrap, Given, load_bootstrap
from everwall.bootstrap.machine import Machine
from everwall.config import ConfigError
from everwall.node import Node
from everwall.workers import Workers

SECRET = "c0ffee5a17b3449d8e60f1a2b3c4d5e6f708192a3b4c5d6e7f80917263544536"
VPCE = "vpce-0a1b2c3d4e5f60718"
INIT_CFG = """\
everwall-data-address=127.0.82.15
everwall-port=udp
everwall-max-sessions=64
everwall-policy=policy.yaml
"""
POLICY = """\
zones: {web: {interfaces: ethernet1/1.10}}
rules:
- {name: first, source: any, destination: any, service: tcp/80, action: allow}
"""


class Bucket:
    """``s3://b``, from which every look fetches a folder of its own."""

    def __init__(self) -> None:
        self.files = {"config/init-cfg.txt": INIT_CFG, "config/policy.yaml": POLICY}
        self.folders: list[Path] = []
        self.refusal: SourceError | None = None

    def fetch(self, *_: object) -> sources.Fetched:
        if self.refusal:
            raise self.refusal
        folder = tempfile.TemporaryDirectory()
        for name, text in self.files.items():
            (Path(folder.name) / name).parent.mkdir(exist_ok=True)
            (Path(folder.name) / name).write_text(text)
        self.folders.append(Path(folder.name))
        return sources.Fetched(["config/", *self.files], folder)

    def load(self) -> Bootstrap:
        return load_bootstrap("s3://my-bucket", Given(), Machine())


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Bucket:
    made = Bucket()
    monkeypatch.setattr(sources, "fetch_bucket", made.fetch)
    return made


@pytest.fixture
def node(bucket: Bucket) -> Iterator[Node]:
    read = bucket.load()
    made = Node(read.config, None, 0.0, None, bucket.load)
    yield made
    made._close()


def reload(node: Node) -> dict[str, Any]:
    return asyncio.run(node.policies.reload())


def rules(node: Node) -> list[str]:
    return [rule.name for rule in node.policies.loaded.policy.rules]


def test_a_package_in_a_bucket_is_fetched_again(bucket: Bucket, node: Node) -> None:
    bucket.files["config/policy.yaml"] = POLICY.replace("first", "second")
    reload(node)
    assert rules(node) == ["second"]
    kept = bucket.folders[-1]
    assert kept.is_dir(), "somebody may ask for the policy by its place"
    reload(node)
    assert not kept.exists(), "one is enough"


def test_what_belongs_to_the_policy_is_read_again_with_it_and_the_rest_waits_for_the_next_start(
    bucket: Bucket, node: Node
) -> None:
    words = f"plugin-op-commands=aws-gwlb-associate-vpce:{VPCE}@ethernet1/1.10\nhostname=another\n"
    bucket.files["config/init-cfg.txt"] = INIT_CFG.replace("policy.yaml", "other.yaml") + words
    bucket.files["config/other.yaml"] = POLICY.replace("first", "other")
    reload(node)
    assert rules(node) == ["other"]
    assert [zone.endpoints for zone in node.policies.loaded.policy.zones] == [(0x0A1B2C3D4E5F60718,)]
    assert node.config.associations
    assert node.config.hostname is None


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("policy.yaml", POLICY.replace("tcp/80", "tcp/x"), "policy.yaml:3:"),
        ("policy.yaml", "", "write 'rules: \\[\\]'"),
        ("init-cfg.txt", INIT_CFG.replace("everwall-policy=policy.yaml", ""), "a policy, as before"),
        ("init-cfg.txt", INIT_CFG + "everwall-health-port=none\n", "init-cfg.txt:5: everwall-health-port"),
        ("init-cfg.txt", INIT_CFG.replace("policy.yaml", "missing.yaml"), "everwall-policy"),
        ("init-cfg.txt", f"{INIT_CFG}everwall-cluster-secret={SECRET[:8]}\n", "at least 32 random bytes"),
    ],
    ids=[
        "a wrong rule",
        "an empty policy",
        "no policy",
        "another wrong key",
        "no such file",
        "a short secret",
    ],
)
def test_a_source_with_any_mistake_changes_nothing(
    bucket: Bucket, node: Node, name: str, text: str, said: str
) -> None:
    config, loaded = node.config, node.policies.loaded
    bucket.files[f"config/{name}"] = text
    with pytest.raises(ConfigError, match=said):
        reload(node)
    assert (node.config, node.policies.loaded) == (config, loaded)
    assert not node.workers.rematching


def test_a_source_that_does_not_answer_changes_nothing(bucket: Bucket, node: Node) -> None:
    bucket.refusal = SourceError("s3://my-bucket", "an answer")
    with pytest.raises(SourceError):
        reload(node)
    assert rules(node) == ["first"]


def test_workers_that_cannot_change_leave_source_and_names_as_they_were(
    bucket: Bucket, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    bucket.files["config/policy.yaml"] = POLICY.replace("first", "second").replace(
        "source: any", "source: {fqdn: a.example.com}"
    )
    config = node.config
    monkeypatch.setattr("everwall.node.policies.NAME_PATIENCE_S", 0.0)
    monkeypatch.setattr(Workers, "replace_policy", refuse)
    with pytest.raises(RuntimeError, match="can't start"):
        reload(node)
    assert (rules(node), node.config, len(node.policies.host_names)) == (["first"], config, 0)
