"""The lab's store is a real server, reached as a node reaches it."""

from __future__ import annotations

import dataclasses
import ssl
from collections.abc import Iterator

import pytest

from everwall.lab import certificates, rundir, store
from everwall.lab.processes import LabError, Programs
from tests import needs

HERE = "127.0.0.1"


@pytest.fixture
def running() -> Iterator[store.Store]:
    needs.need(store.server_binary() is not None, "redis-server or valkey-server")
    directory = rundir.create()
    programs = Programs(directory)
    try:
        yield store.start(programs, HERE, store.free_port(HERE), None)
    finally:
        programs.stop()
        directory.close(remove=True)


def test_it_answers_with_tls_and_password_only(running: store.Store, tmp_path: object) -> None:
    assert running.tls
    assert store.ask(running, None, "PING") == "PONG"
    assert store.describe(running, None).split()[0] in ("redis", "valkey")
    with pytest.raises(LabError, match="refuses"):
        store.ask(dataclasses.replace(running, password="guess"), None, "PING")


def test_it_comes_back_where_it_was_and_empty(running: store.Store) -> None:
    assert store.ask(running, None, "SET session 1") == "OK"
    assert "db0" in store.ask(running, None, "INFO keyspace")
    programs = Programs(rundir.create())
    try:
        again = store.restart(programs, running, None)
        assert not running.program.running
        assert (again.host, again.port, again.authority) == (running.host, running.port, running.authority)
        assert "db0" not in store.ask(again, None, "INFO keyspace"), (
            "with the same password, and without its keys"
        )
    finally:
        programs.stop()
        programs.directory.close(remove=True)


def test_another_authority_is_not_believed(running: store.Store) -> None:
    assert running.authority is not None
    folder = running.authority.parent / "foreign"
    folder.mkdir()
    foreign = certificates.make(folder, HERE)
    with pytest.raises(ssl.SSLCertVerificationError):
        store.ask(dataclasses.replace(running, authority=foreign.authority), None, "PING")


def test_its_files_with_secrets_are_for_the_owner_alone(running: store.Store) -> None:
    assert running.authority is not None
    for name in ("store.key", "store.conf"):
        assert (running.authority.parent / name).stat().st_mode & 0o077 == 0
