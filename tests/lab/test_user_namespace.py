"""The rung for an unprivileged user: what is inside, what is not, and how the lab comes to it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from everwall.kernels import CACHE_DIRECTORY
from everwall.lab import capabilities, rundir, store, user_namespace
from everwall.lab.capabilities import LOOPBACK, RAW, ROOT, UDP, USER_NAMESPACE, XDP, Capability
from everwall.lab.processes import LabError
from tests import needs


def said(program: str) -> list[str]:
    """Runs Python inside and returns its lines; it writes them to a file, since only failures are told."""
    needs.user_namespaces()
    file = Path(rundir.base()) / f"said-{os.getpid()}"
    try:
        user_namespace.run(
            [sys.executable, "-c", f"import sys; sys.stdout = open({str(file)!r}, 'w')\n{program}"]
        )
        return file.read_text().splitlines()
    finally:
        file.unlink(missing_ok=True)


def test_whoever_is_inside_is_root_over_a_world_of_their_own() -> None:
    lines = said("import os, socket; print(os.geteuid(), [name for _, name in socket.if_nameindex()])")
    assert lines == ["0 ['lo']"], "none of the machine's interfaces"


def test_namespaces_are_made_and_named_without_the_machines_directory() -> None:
    lines = said(
        "import os, subprocess\n"
        "print(os.listdir('/run/netns'))\n"
        "subprocess.run(['ip', 'netns', 'add', 'everwall-probe'], check=True)\n"
        "print(os.listdir('/run/netns'))\n"
    )
    assert lines == ["[]", "['everwall-probe']"]
    listed = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=False).stdout
    assert "everwall-probe" not in listed


def test_the_rest_of_run_is_still_there() -> None:
    before = sorted(each.name for each in Path("/run").iterdir() if each.is_dir() and each.name != "netns")
    lines = said("import os; print(*sorted(each.name for each in os.scandir('/run') if each.is_dir()))")
    assert [name for name in lines[0].split() if name != "netns"] == before


def test_labs_and_compiled_code_are_found_where_they_are_outside() -> None:
    lines = said(
        "from everwall.lab import rundir, user_namespace\nfrom everwall.kernels import CACHE_DIRECTORY\n"
        "print(rundir.base(), CACHE_DIRECTORY, user_namespace.is_inside())"
    )
    assert lines == [f"{rundir.base()} {CACHE_DIRECTORY} True"]
    assert not user_namespace.is_inside()


def test_a_program_that_fails_inside_tells_why_with_its_last_line() -> None:
    needs.user_namespaces()
    with pytest.raises(LabError, match=r"^because$"):
        user_namespace.run([sys.executable, "-c", "import sys; print('first'); sys.exit('because')"])


# The choice ---------------------------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """Says what the machine allows: (root, xdp, user namespaces, a real store)."""

    def allows(root: bool, xdp: bool, inside: bool, real_store: bool = True) -> None:
        def tried_inside() -> str:
            if not inside:
                raise LabError("unshare: forbidden")
            return "fine"

        found = [Capability("network namespaces", root, "we are not root", ROOT)]
        found += [Capability("XDP", xdp, "MTU too large", XDP)] if root else []
        monkeypatch.setattr(capabilities, "_root", lambda: found)
        monkeypatch.setattr(capabilities, "_user_namespace", tried_inside)
        monkeypatch.setattr(store, "server_binary", lambda: "redis-server" if real_store else None)

    return allows


def test_the_best_rung_is_taken_and_nothing_has_to_be_explained(machine) -> None:
    machine(root=True, xdp=True, inside=True)
    assert capabilities.choose() == (ROOT, XDP, "", "")


def test_without_root_the_user_namespace_is_next_and_says_why_it_is_not_root(machine) -> None:
    machine(root=False, xdp=False, inside=True)
    chosen = capabilities.choose()
    assert (chosen.rung, chosen.port) == (USER_NAMESPACE, RAW)
    assert chosen.why_rung == "not the root rung: we are not root"


def test_where_user_namespaces_are_forbidden_loopback_is_left_with_both_reasons(machine) -> None:
    machine(root=False, xdp=False, inside=False)
    chosen = capabilities.choose()
    assert (chosen.rung, chosen.port) == (LOOPBACK, UDP)
    assert chosen.why_rung == (
        "not the root rung: we are not root; not in a user namespace: unshare: forbidden"
    )


def test_without_a_real_store_namespaces_are_of_no_use(machine) -> None:
    machine(root=True, xdp=True, inside=True, real_store=False)
    chosen = capabilities.choose()
    assert chosen.rung == LOOPBACK
    assert "no redis-server" in chosen.why_rung


@pytest.mark.parametrize(
    ("rung", "port", "why"),
    [
        (ROOT, None, "not the root rung: we are not root"),
        (USER_NAMESPACE, None, "not in a user namespace: unshare: forbidden"),
        (None, RAW, "--port raw needs network namespaces: not the root rung"),
    ],
)
def test_what_was_asked_for_and_cannot_be_is_an_error_with_the_reason(
    machine, rung: str | None, port: str | None, why: str
) -> None:
    machine(root=False, xdp=False, inside=False)
    with pytest.raises(LabError, match=why):
        capabilities.choose(rung, port)


def test_bpf_programs_are_not_for_a_user_namespace(machine) -> None:
    machine(root=False, xdp=False, inside=True)
    with pytest.raises(LabError, match="needs root"):
        capabilities.choose(USER_NAMESPACE, XDP)
