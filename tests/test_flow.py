"""The flow key: the same for both directions, another for any other flow, and hard to guess."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from ipaddress import ip_address
from random import Random

import numpy as np
import pytest

from everwall.flow import hash_key, hash_of, less_unsigned, make_key, secret, signature
from everwall.wire import meta
from everwall.wire.meta import COLUMNS
from tests import packets
from tests.naive import flow as naive
from tests.wire.reading import SEED, Readings

pytestmark = pytest.mark.kernel

ENDS = [
    (("10.0.0.1", 1234), ("10.0.0.2", 80)),
    (("255.255.255.254", 1), ("0.0.0.1", 2)),
    (("127.255.255.255", 1), ("128.0.0.0", 1)),
    (("10.0.0.1", 80), ("10.0.0.1", 79)),
    (("2001:db8::1", 1234), ("2001:db8::2", 80)),
    (("7fff:ffff::", 5), ("8000::", 5)),
    (("fe80::7fff:ffff:ffff:ffff", 5), ("fe80::8000:0:0:0", 5)),
    (("::1", 9), ("::1", 65535)),
]


def keys(made: Sequence[bytes], endpoint: int = 0, seed: int = SEED) -> list[dict[str, int | bytes]]:
    readings = Readings(made, bare=True, endpoint=endpoint, seed=seed)
    return [readings.key(i) for i in range(len(made))]


def key(packet: bytes, endpoint: int = 0, seed: int = SEED) -> dict[str, int | bytes]:
    return keys([packet], endpoint, seed)[0]


def name(found: dict[str, int | bytes]) -> tuple[int | bytes, ...]:
    return found["key0"], found["key1"], found["key2"]


@pytest.mark.parametrize(("client", "server"), ENDS)
def test_both_directions_have_one_key_and_differ_in_direction(
    client: tuple[str, int], server: tuple[str, int]
) -> None:
    there, back = keys(
        [
            packets.tcp(client[0], server[0], client[1], server[1]),
            packets.tcp(server[0], client[0], server[1], client[1], "SA"),
        ]
    )
    assert {there.pop("direction"), back.pop("direction")} == {0, 1}
    assert there == back


@pytest.mark.parametrize(("client", "server"), ENDS)
def test_the_key_is_the_oracles(client: tuple[str, int], server: tuple[str, int]) -> None:
    for endpoint in (0, 1, 7 << 32, -5):
        for seed in (0, 1, -1, SEED):
            found = key(packets.udp(client[0], server[0], client[1], server[1]), endpoint, seed)
            source, destination = [(ip_address(end[0]).packed, end[1]) for end in (client, server)]
            family = ip_address(client[0]).version
            assert found == naive.key(endpoint, family, packets.UDP, source, destination, seed)


def test_the_lower_end_is_lower_as_unsigned_bytes() -> None:
    found = key(packets.udp("128.0.0.1", "127.0.0.1", 5, 6))
    assert (found["lower"], found["upper"]) == (bytes([127, 0, 0, 1]), bytes([128, 0, 0, 1]))
    assert found["direction"] == 1
    assert found["key2"] == 6 | 5 << 16 | 17 << 32 | 4 << 40
    high = key(packets.udp("8000::", "7fff::", 5, 6))
    assert high["lower"] == ip_address("7fff::").packed


def test_equal_addresses_are_ordered_by_port_and_equal_ends_are_direction_0() -> None:
    assert key(packets.udp("10.0.0.1", "10.0.0.1", 9, 8))["direction"] == 1
    assert key(packets.udp("10.0.0.1", "10.0.0.1", 8, 9))["direction"] == 0
    assert key(packets.udp("10.0.0.1", "10.0.0.1", 8, 8))["direction"] == 0


def test_whatever_differs_makes_another_key() -> None:
    base = packets.udp("10.0.0.1", "10.0.0.2", 1, 2)
    others = [
        packets.udp("10.0.0.1", "10.0.0.2", 2, 1),
        packets.udp("10.0.0.1", "10.0.0.2", 1, 3),
        packets.udp("10.0.0.1", "10.0.0.3", 1, 2),
        packets.tcp("10.0.0.1", "10.0.0.2", 1, 2),
        packets.udp("::10.0.0.1", "::10.0.0.2", 1, 2),
    ]
    names = {name(found) for found in keys([base, *others])}
    names.add(name(key(base, endpoint=7)))
    assert len(names) == 7


def test_request_and_reply_of_an_echo_have_one_key() -> None:
    for client, server in (("10.0.0.1", "10.0.0.2"), ("::1", "::2")):
        request = key(packets.icmp_echo(client, server, 99))
        reply = key(packets.icmp_echo(server, client, 99, reply=True))
        assert name(request) == name(reply)
        assert name(request) != name(key(packets.icmp_echo(client, server, 98)))


def test_the_sum_of_an_ipv4_key_is_both_addresses() -> None:
    found = key(packets.udp("10.0.0.2", "10.0.0.1", 1, 2))
    assert found["key1"] == 0x0A000001_0A000002


def test_an_ipv6_signature_depends_on_each_bit_and_on_the_seed() -> None:
    base = [0x0123456789ABCDEF, -1, 0, 1 << 62]
    seen = {
        int(signature(*base, SEED)),
        int(signature(*base, SEED + 1)),
        int(signature(*base, SEED ^ 1 << 40)),
    }
    for half in range(4):
        for bit in range(63):
            changed = list(base)
            changed[half] ^= 1 << bit
            seen.add(int(signature(*changed, SEED)))
    assert len(seen) == 3 + 4 * 63


def test_the_oracle_is_halfsiphash() -> None:
    """The first vectors that its authors published, which are of the variant with 2 and 4 rounds."""
    vectors = ["218d1f59b9b83cc8", "be552412f8387315", "064f39ef7c50eb57"]
    for length, expected in enumerate(vectors):
        assert naive.halfsiphash(bytes(range(length)), bytes(range(8)), 2, 4).hex() == expected


def test_the_hash_is_the_oracles_for_any_words() -> None:
    rng = Random(1)
    for _ in range(200):
        words = [rng.choice([0, -1, 1, rng.getrandbits(63), -rng.getrandbits(63)]) for _ in range(4)]
        data = b"".join(word.to_bytes(8, "little", signed=True) for word in words[:3])
        digest = naive.halfsiphash(data, words[3].to_bytes(8, "little", signed=True))
        assert int(hash_of(*words)) == int.from_bytes(digest, "little", signed=True)


def test_the_first_secrets_are_those_of_splitmix64() -> None:
    """Its first outputs for the seed 1234567, as its authors' program prints them."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [int(secret(1234567, number)) % 2**64 for number in (1, 2, 3)] == published
    assert [naive.splitmix(1234567, number) for number in (1, 2, 3)] == published


def test_hash_and_signature_are_the_oracles_for_any_words() -> None:
    rng = Random(2)
    for _ in range(200):
        words = [rng.choice([0, -1, 1, rng.getrandbits(63), -rng.getrandbits(63)]) for _ in range(5)]
        data = b"".join(word.to_bytes(8, "little", signed=True) for word in words[:4])
        seed = words[4]
        hashed = int.from_bytes(naive.keyed(data[:24], seed, 1), "little", signed=True)
        assert int(hash_key(*(np.int64(word) for word in words[:3]), np.int64(seed))) == hashed
        signed = int.from_bytes(naive.keyed(data, seed, 4), "little", signed=True)
        assert int(signature(*(np.int64(word) for word in words))) == signed


@pytest.mark.parametrize("word", range(3))
def test_flows_that_differ_in_any_one_bit_differ_in_half_of_the_hash(word: int) -> None:
    rng = Random(word)
    turned = []
    for _ in range(40):
        words = [np.int64(rng.getrandbits(63)) for _ in range(3)]
        seed = np.int64(rng.getrandbits(63))
        bit = rng.randrange(63)
        other = list(words)
        other[word] ^= np.int64(1 << bit)
        turned.append((int(hash_key(*words, seed)) ^ int(hash_key(*other, seed))).bit_count())
    assert min(turned) > 10
    assert 28 < sum(turned) / len(turned) < 36


def test_neighbouring_flows_spread_over_buckets() -> None:
    """4,096 flows that differ in one port, into 256 buckets by the low bits and by the high bits."""
    key1 = np.int64(0x0A000001_0A000002)
    words = [int(hash_key(np.int64(1), key1, np.int64(port | 4 << 40), SEED)) for port in range(4096)]
    for buckets in (Counter(word & 255 for word in words), Counter(word >> 56 for word in words)):
        assert len(buckets) == 256
        assert max(buckets.values()) < 16 * 2.5


def test_another_seed_puts_flows_elsewhere() -> None:
    same = [
        int(hash_key(1, port, 4 << 40, 1)) & 255 == int(hash_key(1, port, 4 << 40, 2)) & 255
        for port in range(1000)
    ]
    assert sum(same) < 30


def test_unsigned_order_of_signed_numbers() -> None:
    order = [0, 1, (1 << 63) - 1, -(1 << 63), -2, -1]
    for i, a in enumerate(order):
        for j, b in enumerate(order):
            assert bool(less_unsigned(np.int64(a), np.int64(b))) == (i < j)


def test_a_later_fragment_is_keyed_by_the_ports_that_were_filled_in() -> None:
    rows = np.zeros((2, COLUMNS), np.int64)
    whole = Readings([packets.udp("10.0.0.1", "10.0.0.2", 1, 2)], bare=True)
    later = packets.fragments(packets.udp("10.0.0.1", "10.0.0.2", 1, 2, bytes(64)), 32)[1]
    rows[0] = Readings([later], bare=True).batch.meta[0]
    rows[0, meta.SOURCE_PORT], rows[0, meta.DESTINATION_PORT] = 1, 2
    make_key(rows, 0, SEED)
    key_columns = slice(meta.KEY0, meta.HASH + 1)
    assert rows[0, key_columns].tolist() == whole.batch.meta[0, key_columns].tolist()
