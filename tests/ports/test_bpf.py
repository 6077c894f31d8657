"""Loading and attaching: what an operator is told when it fails, and what is left when a process dies."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import numpy as np
import pytest

from everwall.limits import BEAT_STALE_NS
from everwall.ports import bpf, libbpf
from everwall.ports.bpf import BpfError, BuildError, CutThrough, attach_pass
from everwall.ports.bpf_build import object_path
from everwall.ports.libbpf import XDP_PASS, BpfObject
from everwall.session import control
from tests import needs, packets
from tests.cutthrough import FLOWS, Rig
from tests.descriptors import opened
from tests.frames import frame
from tests.namespaces import ip, new_network

ROOT = Path(__file__).resolve().parents[2]
_CLOCK_MONOTONIC_COARSE = 6
# What it takes to read the checkout, without what it takes to load programs.
_UNPRIVILEGED = ["setpriv", "--bounding-set", "-all,+dac_override", "--inh-caps", "-all"]


@pytest.fixture
def link() -> Iterator[tuple[str, str]]:
    """Both ends of a veth in a namespace of this test's own."""
    needs.xdp()
    with new_network():
        ip("link", "add", "vb0", "type", "veth", "peer", "name", "vb1")
        for name in ("vb0", "vb1"):
            ip("link", "set", name, "up")
        yield "vb0", "vb1"


@contextlib.contextmanager
def program(**options: int) -> Iterator[CutThrough]:
    made = CutThrough(**{"workers": 1, "slots": 64, "queues": 1} | options)
    try:
        yield made
    finally:
        made.close()


def attached(name: str) -> bool:
    return "prog/xdp" in ip("link", "show", name)


# The maps -------------------------------------------------------------------------------------------------


def test_the_arrays_are_the_tables_of_all_workers_and_start_empty() -> None:
    needs.xdp()
    with program(workers=3, slots=80) as made:
        assert made.hot.shape == (240, 8)
        assert made.tags.shape == (240,)
        assert made.addresses.shape == (240, 4)
        assert made.control.shape == (control.WORDS,)
        assert [array.dtype for array in (made.hot, made.tags, made.addresses, made.control)] == [
            np.int64, np.uint8, np.int64, np.int64,
        ]  # fmt: skip
        assert made.hot.ctypes.data % 64 == 0, "a line is a cache line"
        assert not made.hot.any()
        assert not made.tags.any()
        assert not made.addresses.any()
        assert made.control[control.WORKERS] == 3
        assert made.control[control.SETS] == 10
        assert set(made.counters().values()) == {0}


def test_the_arrays_outlive_the_program() -> None:
    needs.xdp()
    with program() as made:
        hot = made.hot
    hot[63, 7] = 5
    assert hot[63, 7] == 5
    with pytest.raises(BpfError, match="closed"):
        made.counters()


@pytest.mark.parametrize(
    "wrong", [{"workers": 0}, {"workers": 65}, {"slots": 0}, {"slots": 12}], ids=lambda wrong: str(wrong)
)
def test_sizes_that_cannot_be_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError), program(**wrong):
        pass


def test_more_sources_than_fit_are_left_to_the_engine_more_addresses_are_refused() -> None:
    needs.xdp()
    with program() as made:
        networks = [IPv4Network(f"10.{number}.0.0/16") for number in range(control.SOURCES_MAX + 1)]
        made.configure(seed=1, sources=networks)
        assert made.control[control.SOURCES] == control.SOURCES_MAX
        inner = packets.geneve(FLOWS[0].inner())
        for source in ("10.15.0.1", "10.16.0.1"):
            assert made.test_run(frame(inner, source=source))[0] == XDP_PASS
        assert made.counters()["no-session"] == made.counters()["source"] == 1
        with pytest.raises(ValueError, match="17 data addresses"):
            made.configure(seed=1, sources=[], addresses=[IPv4Address(number) for number in range(17)])
        assert made.control[control.ENABLED] == 0, "half a configuration bounces nothing"


def test_every_counter_is_explained() -> None:
    page = (ROOT / "docs" / "cut-through.md").read_text()
    assert [outcome.label for outcome in bpf.Outcome if f"| `{outcome.label}` |" not in page] == []


# What an operator is told -----------------------------------------------------------------------------------


def test_without_libbpf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libbpf, "_loaded", None)
    monkeypatch.setattr(libbpf, "_LIBRARY", "libnosuch.so.1")
    with pytest.raises(BpfError, match=r"libnosuch.so.1 is not installed .*package libbpf1"):
        libbpf.library()


def test_without_an_object(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Path:
        raise BuildError("the BPF object x cannot be used: it has not been built. clang is not installed")

    monkeypatch.setattr(bpf, "object_path", missing)
    with pytest.raises(BpfError, match=r"has not been built. clang is not installed"), program():
        pass


def test_with_something_that_is_no_object(tmp_path: Path) -> None:
    needs.xdp()
    other = tmp_path / "other.bpf.o"
    other.write_bytes(b"\x7fELF" + bytes(100))
    with pytest.raises(BpfError, match=r"is no BPF object\n.*libbpf"):
        BpfObject(other, "cutthrough")
    with pytest.raises(BpfError, match="there is no BPF object at"):
        BpfObject(tmp_path / "none", "cutthrough")
    with pytest.raises(BpfError, match="holds no program bounce"):
        BpfObject(object_path(), "bounce")


def test_tables_that_cannot_be_mapped_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    needs.xdp()
    loaded: list[BpfObject] = []

    def too_large(self: BpfObject, name: str) -> None:
        loaded.append(self)
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(BpfObject, "array", too_large)
    before = opened()
    with pytest.raises(BpfError, match=r"cannot be mapped: Cannot allocate memory"), program():
        pass
    assert loaded, "it was loaded already"
    assert opened() == before, "a node that goes on with another port keeps no maps"


def test_on_an_old_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libbpf.platform, "release", lambda: "5.10.0-33-cloud-amd64")
    with pytest.raises(BpfError, match=r"kernel is too old .*5.10.0-33-cloud-amd64, needed is 5.11"):
        BpfObject(Path("/nowhere"), "cutthrough")
    monkeypatch.setattr(libbpf.platform, "release", lambda: "5.15.0")
    with pytest.raises(BpfError, match=r"too old for xdp.frags: 5.15.0, needed is 5.18"):
        BpfObject(Path("/nowhere"), "cutthrough_frags", frags=True)


def test_when_the_verifier_refuses_its_words_are_kept() -> None:
    needs.xdp()
    with pytest.raises(BpfError) as caught:
        BpfObject(object_path(), "cutthrough", {"hot": 1 << 31})
    assert "no memory for the maps" in str(caught.value)
    assert "hot" in str(caught.value), "libbpf says which map"


def run(code: str, prefix: list[str]) -> str:
    """What a Python process of its own prints of the error it gets."""
    text = f"""
from everwall.ports.bpf import BpfError, CutThrough, attach_pass
try:
    {code}
except BpfError as error:
    print(error)
"""
    done = subprocess.run(
        [*prefix, sys.executable, "-c", text],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("code", ["CutThrough(workers=1, slots=8, queues=1)", "attach_pass('lo')"])
def test_without_capabilities(code: str) -> None:
    needs.xdp()
    needs.binary("setpriv")
    object_path()
    said = run(code, _UNPRIVILEGED)
    assert "loading a BPF program needs CAP_NET_ADMIN and CAP_BPF (run as root" in said


def test_in_a_user_namespace_the_capabilities_are_not_what_is_missing() -> None:
    needs.xdp()
    needs.binary("unshare")
    object_path()
    said = run("CutThrough(workers=1, slots=8, queues=1)", ["unshare", "--user", "--map-root-user"])
    assert "refused although the capabilities are there: the process is in a user namespace" in said


def test_an_interface_that_is_not_there(link: tuple[str, str]) -> None:
    with program() as made, pytest.raises(BpfError, match="no interface eth9 in this network namespace"):
        made.attach("eth9")


def test_a_driver_without_native_xdp_is_never_served_generically(link: tuple[str, str]) -> None:
    with program() as made, pytest.raises(BpfError, match=r"the driver of lo \(.*\) has no native XDP"):
        made.attach("lo")
    assert "xdp" not in ip("link", "show", "lo")


def test_an_mtu_too_large_for_native_xdp(link: tuple[str, str]) -> None:
    for name in link:
        ip("link", "set", name, "mtu", "8568")
    with (
        program() as made,
        pytest.raises(BpfError, match=r"the MTU of vb0 \(8568\), or of its peer, is too large"),
    ):
        made.attach("vb0")
    with program(frags=True) as made:
        assert made.attach("vb0") == "native", "packets in several buffers may be longer"


def test_another_program_is_not_pushed_aside(link: tuple[str, str]) -> None:
    held = attach_pass("vb0")
    with program() as made, pytest.raises(BpfError, match="another XDP program is attached to vb0"):
        made.attach("vb0")
    assert attached("vb0"), "the other one's still"
    held.close()
    assert not attached("vb0")


# Life and death -------------------------------------------------------------------------------------------


def test_close_detaches(link: tuple[str, str]) -> None:
    with program() as made:
        assert made.attach("vb0") == "native"
        assert attached("vb0")
    assert not attached("vb0")


def test_nothing_stays_attached_after_kill_9(link: tuple[str, str]) -> None:
    code = """
import sys
from everwall.ports.bpf import CutThrough
made = CutThrough(workers=1, slots=64, queues=1)
made.attach("vb0")
print("attached", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "NUMBA_DISABLE_JIT": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"attached\n"
        assert attached("vb0")
        process.send_signal(signal.SIGKILL)
        process.wait()
    until = time.monotonic() + 20
    while attached("vb0"):
        assert time.monotonic() < until
        time.sleep(0.01)


# On a wire ------------------------------------------------------------------------------------------------


class Wire:
    """A firewall's interface here, a load balancer's in a namespace behind it."""

    OURS, THEIRS = "10.9.0.2", "10.9.0.1"

    def __init__(self, stack: contextlib.ExitStack) -> None:
        stack.enter_context(new_network())
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        stack.callback(os.close, here)
        ip("link", "set", "lo", "up")
        self.hold = subprocess.Popen(["unshare", "--net", "sleep", "600"])
        stack.callback(self.hold.wait)
        stack.callback(self.hold.kill)
        while os.readlink(f"/proc/{self.hold.pid}/ns/net") == os.readlink("/proc/thread-self/ns/net"):
            time.sleep(0.01)
        ip("link", "add", "vb0", "type", "veth", "peer", "name", "vb1", "netns", str(self.hold.pid))
        ip("addr", "add", f"{self.OURS}/24", "dev", "vb0")
        ip("link", "set", "vb0", "up")
        self.there(lambda: ip("addr", "add", f"{self.THEIRS}/24", "dev", "vb1"))
        self.there(lambda: ip("link", "set", "vb1", "up"))

    def there(self, what):
        """The result of a function that runs on the other side."""
        result = []

        def act() -> None:
            with open(f"/proc/{self.hold.pid}/ns/net") as place:
                os_setns(place.fileno())
            result.append(what())

        thread = threading.Thread(target=act)
        thread.start()
        thread.join()
        assert result, "it failed on the other side"
        return result[0]


def os_setns(descriptor: int) -> None:
    assert ctypes.CDLL(None, use_errno=True).setns(descriptor, 0x40000000) == 0


@pytest.fixture
def wire() -> Iterator[Wire]:
    needs.xdp()
    with contextlib.ExitStack() as stack:
        yield Wire(stack)


def udp_socket(address: str, port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind((address, port))
    made.settimeout(20)
    return made


def test_a_packet_goes_and_returns_by_the_driver_while_the_rest_of_the_interface_lives(wire: Wire) -> None:
    """GENEVE of an offloaded session is bounced; a TCP connection, ARP and other GENEVE reach the kernel."""
    rig = Rig(addresses=(wire.OURS,))
    flow = FLOWS[0]
    rig.add(flow)
    rig.program.attach("vb0")
    held = wire.there(lambda: attach_pass("vb1"))
    gateway = wire.there(lambda: udp_socket(wire.THEIRS, 6081))
    source = wire.there(lambda: udp_socket(wire.THEIRS, 41_234))
    kernel = udp_socket(wire.OURS, 6081)
    server = socket.create_server((wire.OURS, 22))
    client = wire.there(lambda: socket.create_connection((wire.OURS, 22), timeout=20))
    accepted, _ = server.accept()

    for round_ in range(20):
        sent = packets.geneve(flow.inner(100 + round_, seq=1000), flow.endpoint)
        source.sendto(sent, (wire.OURS, 6081))
        back, peer = gateway.recvfrom(2048)
        assert back == sent, "its own GENEVE header, byte for byte"
        assert peer == (wire.OURS, 41_234), "from the port it was sent from"
        client.sendall(b"ls -l\n")
        assert accepted.recv(64) == b"ls -l\n"
        accepted.sendall(b"total 0\n")
        assert client.recv(64) == b"total 0\n"
    stranger = packets.geneve(flow.inner(8), endpoint=99)
    source.sendto(stranger, (wire.OURS, 6081))
    assert kernel.recv(2048) == stranger, "handed up; without an AF_XDP socket that is the kernel"
    ip("neigh", "flush", "dev", "vb0")
    client.sendall(b"and ARP\n")
    assert accepted.recv(64) == b"and ARP\n"

    counters = rig.program.counters()
    assert counters["bounced"] == 20
    assert counters["no-session"] == 1
    assert counters["passed"] >= 20, "the connection's packets, ARP"
    assert rig.line(flow)[10:12].sum() == 20
    for open_ in (gateway, source, kernel, server, client, accepted, held):
        open_.close()
    rig.close()


def test_a_node_that_hangs_bounces_no_more(wire: Wire) -> None:
    rig = Rig(addresses=(wire.OURS,))
    rig.add(FLOWS[0])
    rig.beat(0)
    rig.program.attach("vb0")
    held = wire.there(lambda: attach_pass("vb1"))
    gateway = wire.there(lambda: udp_socket(wire.THEIRS, 6081))
    gateway.settimeout(0.1)
    sent: dict[bytes, int] = {}

    def came_back() -> int | None:
        """Send another packet; when the one that comes back was sent, None when none does."""
        packet = packets.geneve(FLOWS[0].inner(100, seq=1000 + len(sent)), FLOWS[0].endpoint)
        sent[packet] = time.clock_gettime_ns(_CLOCK_MONOTONIC_COARSE)  # the program's, a tick behind
        gateway.sendto(packet, (wire.OURS, 6081))
        with contextlib.suppress(TimeoutError):
            return sent[gateway.recv(2048)]
        return None

    def beat() -> int:
        """The time of a word by which packets are bounced; another try where the machine slept in between."""
        for _ in range(100):
            rig.beat(0)
            if came_back():
                return int(rig.program.control[control.WORKER + control.BEAT])
        pytest.fail("nothing is bounced although the word is fresh")

    word, deadline, back = beat(), time.monotonic() + 60, []
    while rig.program.counters()["stale"] == 0:
        assert time.monotonic() < deadline, "bounced for ever"
        back.append(came_back())
    assert time.monotonic_ns() - word > BEAT_STALE_NS, "for as long as the word was fresh"
    back += [came_back() for _ in range(3)]
    assert [at for at in back if at and at - word > BEAT_STALE_NS] == [], "and no longer"
    assert beat() > word, "it was the word and nothing else"
    held.close()
    gateway.close()
    rig.close()
