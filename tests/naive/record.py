"""The stored record, put together with ``struct`` and taken apart: the oracle of ``session/record.py``."""

import hashlib
import struct

from everwall.session import image
from tests.naive.siphash import siphash24


def keys(secret: bytes) -> tuple[bytes, bytes]:
    """The keys of field and tag."""
    field = hashlib.blake2b(secret, digest_size=16, person=b"everwall field").digest()
    return field, hashlib.blake2b(secret, digest_size=16, person=b"everwall tag").digest()


def flow(row) -> bytes:
    columns = (
        image.ENDPOINT,
        image.LOWER_HIGH,
        image.LOWER_LOW,
        image.UPPER_HIGH,
        image.UPPER_LOW,
        image.KEY2,
    )
    return struct.pack("<6q", *(int(row[column]) for column in columns))


def field(row, secret: bytes) -> bytes:
    return struct.pack(">Q", siphash24(keys(secret)[0], flow(row)))


def seal(row, secret: bytes) -> bytes:
    def number(column: int, bits: int) -> int:
        return int(row[column]) % (1 << bits)

    def saturated(column: int, bits: int) -> int:
        return min(max(int(row[column]), 0), (1 << bits) - 1)

    body = struct.pack(
        ">BBBHHHIII",
        0x10 | number(image.STATE, 4),
        number(image.FLAGS, 8),
        number(image.SCALES, 8),
        number(image.FROM_ZONE, 16),
        number(image.TO_ZONE, 16),
        number(image.APPLICATION, 16),
        number(image.RULE, 32),
        number(image.HOST, 32),
        number(image.OWNER, 32),
    )
    body += saturated(image.START, 48).to_bytes(6, "big")
    body += struct.pack(">HI", saturated(image.GENERATION, 16), saturated(image.EXPIRY, 32))
    body += saturated(image.PACKETS, 40).to_bytes(5, "big")
    body += saturated(image.BYTES, 48).to_bytes(6, "big")
    return body + struct.pack(">Q", siphash24(keys(secret)[1], flow(row) + body))


def unseal(row, value: bytes, secret: bytes):
    """The columns that ``value`` holds for the flow of ``row``, or None where it does not open."""
    body, tag = value[:44], value[44:]
    if struct.pack(">Q", siphash24(keys(secret)[1], flow(row) + body)) != tag or body[0] >> 4 != 1:
        return None
    names = (image.FLAGS, image.SCALES, image.FROM_ZONE, image.TO_ZONE, image.APPLICATION)
    names += (image.RULE, image.HOST, image.OWNER)
    found = dict(zip(names, struct.unpack(">BBHHHIII", body[1:21]), strict=True))
    found[image.STATE] = body[0] & 0xF
    found[image.START] = int.from_bytes(body[21:27], "big")
    found[image.GENERATION], found[image.EXPIRY] = struct.unpack(">HI", body[27:33])
    found[image.PACKETS] = int.from_bytes(body[33:38], "big")
    found[image.BYTES] = int.from_bytes(body[38:44], "big")
    return found
