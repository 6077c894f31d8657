"""Captures as a port: files of tcpdump and Wireshark, read frame by frame, described as received packets.

Both formats are read, pcap with micro- or nanoseconds in either byte order and pcapng with any number of
interfaces; times are whole nanoseconds, never floats. A file that is damaged or cut off gives all frames before
the damage, then a ``CaptureError`` that names it.

Link layers are those of ``wire.ethernet``. GENEVE over IPv4 (UDP port 6081) becomes a GENEVE row, any other IP
packet a BARE one of endpoint 0. A frame that the capture cut (``tcpdump -s``) is filled up with zeros to its
length on the wire, as long as all headers that the firewall reads were captured: payloads are not looked at.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import dpkt

from everwall.kernels import kernel
from everwall.limits import CAPTURED_BYTES_MAX, GENEVE_PORT, SECOND_NS
from everwall.verdict import Verdict
from everwall.wire import meta as m
from everwall.wire.ethernet import ip_offset
from everwall.wire.fields import read8, read16, read32
from everwall.wire.geneve import decapsulate
from everwall.wire.packet import parse


class CaptureError(Exception):
    """A file that is no capture, or that is damaged; the message names file and place."""


class Frame(NamedTuple):
    """One frame of a capture."""

    time: int
    """Nanoseconds since the Unix epoch."""
    link: int
    """LINKTYPE number of libpcap."""
    data: bytes
    """What was captured of it, from the link layer on."""
    length: int
    """Bytes it had on the wire."""


class _Damaged(Exception):
    """The rest of the file cannot be read; the message says why."""


def read_frames(path: Path) -> Iterator[Frame]:
    """The frames of a capture file in its order. Raises CaptureError, possibly after some frames."""
    count = 0
    try:
        with path.open("rb") as file:
            for frame in _frames(file):
                yield frame
                count += 1
    except OSError as error:
        raise CaptureError(f"{path}: {error.strerror or error}") from None
    except _Damaged as error:
        after = f" after {count} packets" if count else ""
        raise CaptureError(f"{path}: {error}{after}") from None


def _frames(file: BinaryIO) -> Iterator[Frame]:
    magic = file.read(4)
    if magic in _PCAP_MAGICS:
        return _pcap_frames(file, magic)
    if magic == _PCAPNG_MAGIC:
        return _pcapng_frames(file)
    if magic[:2] == b"\x1f\x8b" or magic == b"\x28\xb5\x2f\xfd":
        raise _Damaged("a compressed file; decompress it first")
    raise _Damaged("not a capture (neither pcap nor pcapng)" if magic else "an empty file, not a capture")


def _read(file: BinaryIO, size: int, what: str) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise _Damaged(f"cut off in the middle of {what}")
    return data


def _checked(captured: int) -> int:
    if captured > CAPTURED_BYTES_MAX:
        raise _Damaged(f"damaged: a packet of {captured} bytes")
    return captured


# pcap -------------------------------------------------------------------------------------------------

# Bytes of the magic number -> byte order, nanoseconds of one unit, bytes of a record header.
_PCAP_MAGICS = {
    struct.pack(order + "I", magic): (order, unit, header.__hdr_len__)
    for order in "<>"
    for magic, unit, header in (
        (dpkt.pcap.TCPDUMP_MAGIC, 1000, dpkt.pcap.PktHdr),
        (dpkt.pcap.TCPDUMP_MAGIC_NANO, 1, dpkt.pcap.PktHdr),
        (dpkt.pcap.MODPCAP_MAGIC, 1000, dpkt.pcap.PktModHdr),
    )
}


def _pcap_frames(file: BinaryIO, magic: bytes) -> Iterator[Frame]:
    order, unit, header_bytes = _PCAP_MAGICS[magic]
    header_type = dpkt.pcap.LEFileHdr if order == "<" else dpkt.pcap.FileHdr
    rest = _read(file, dpkt.pcap.FileHdr.__hdr_len__ - 4, "the file header")
    link = header_type(magic + rest).linktype & 0xFFFF  # the upper bits tell of frame check sequences
    unpack = struct.Struct(order + "IIII").unpack_from
    while header := file.read(header_bytes):
        if len(header) < header_bytes:
            raise _Damaged("cut off in the middle of a packet")
        seconds, fraction, captured, length = unpack(header)
        data = _read(file, _checked(captured), "a packet")
        yield Frame(seconds * SECOND_NS + fraction * unit, link, data, max(length, captured))


# pcapng -----------------------------------------------------------------------------------------------

_PCAPNG_MAGIC = struct.pack("<I", dpkt.pcapng.PCAPNG_BT_SHB)  # reads the same in both byte orders
_OLD_PACKET_BLOCK = dpkt.pcapng.PCAPNG_BT_PB
_SIMPLE_PACKET_BLOCK = dpkt.pcapng.PCAPNG_BT_SPB
_PACKET_BLOCK = dpkt.pcapng.PCAPNG_BT_EPB


class _Interface(NamedTuple):
    link: int
    snap: int
    nanoseconds: Callable[[int], int]
    """From the interface's own unit."""


def _pcapng_frames(file: BinaryIO) -> Iterator[Frame]:
    order = "<"
    interfaces: list[_Interface] = []
    time = 0
    head: bytes = _PCAPNG_MAGIC
    while head:
        head += _read(file, 8 - len(head), "a block")
        kind, size = struct.unpack(order + "II", head)
        if kind == dpkt.pcapng.PCAPNG_BT_SHB:
            mark = _read(file, 4, "a section header")
            order = "<" if mark == struct.pack("<I", dpkt.pcapng.BYTE_ORDER_MAGIC) else ">"
            size = struct.unpack(order + "I", head[4:])[0] - 4
            interfaces = []
        if size < 12 - 4 * (kind == dpkt.pcapng.PCAPNG_BT_SHB) or size > 2 * CAPTURED_BYTES_MAX:
            raise _Damaged(f"damaged: a block of {size} bytes")
        body = _read(file, size - 8, "a block")
        if kind == dpkt.pcapng.PCAPNG_BT_IDB:
            interfaces.append(_interface(head + body, order))
        elif kind in (_PACKET_BLOCK, _OLD_PACKET_BLOCK, _SIMPLE_PACKET_BLOCK):
            try:
                frame = _packet_block(kind, body, order, interfaces, time)
            except (struct.error, IndexError):
                raise _Damaged("damaged: a packet block that makes no sense") from None
            time = frame.time
            yield frame
        head = file.read(8)


def _interface(block: bytes, order: str) -> _Interface:
    block_type = (
        dpkt.pcapng.InterfaceDescriptionBlockLE if order == "<" else dpkt.pcapng.InterfaceDescriptionBlock
    )
    try:
        description = block_type(block)
    except (dpkt.UnpackError, UnicodeDecodeError):
        raise _Damaged("damaged: an interface description that makes no sense") from None
    units_per_second, offset = 1_000_000, 0
    for option in description.opts:
        if option.code == dpkt.pcapng.PCAPNG_OPT_IF_TSRESOL and option.data:
            exponent = option.data[0] & 0x7F
            units_per_second = (2 if option.data[0] & 0x80 else 10) ** exponent
        elif option.code == dpkt.pcapng.PCAPNG_OPT_IF_TSOFFSET and len(option.data) == 8:
            offset = struct.unpack(order + "q", option.data)[0]

    def nanoseconds(units: int) -> int:
        return offset * SECOND_NS + units * SECOND_NS // units_per_second

    return _Interface(description.linktype, description.snaplen, nanoseconds)


def _packet_block(kind: int, body: bytes, order: str, interfaces: list[_Interface], last: int) -> Frame:
    """The frame of a packet block; a simple one has no time and takes that of the one before."""
    if kind == _SIMPLE_PACKET_BLOCK:
        interface = interfaces[0]
        (length,) = struct.unpack_from(order + "I", body)
        captured = min(length, interface.snap or length, len(body) - 8)
        return Frame(last, interface.link, body[4 : 4 + captured], length)
    if kind == _PACKET_BLOCK:
        number, high, low, captured, length = struct.unpack_from(order + "IIIII", body)
    else:
        number, _, high, low, captured, length = struct.unpack_from(order + "HHIIII", body)
    if captured > len(body) - 24:
        raise IndexError
    interface = interfaces[number]
    time = interface.nanoseconds(high << 32 | low)
    return Frame(time, interface.link, body[20 : 20 + captured], max(length, captured))


# From frame to descriptor -----------------------------------------------------------------------------

_FORWARD = int(Verdict.FORWARD)
_IP_UDP = m.PROTOCOL_UDP


@kernel
def describe_frame(data, meta, i, link, captured, length):
    """Fill the port's columns of row ``i``, whose first ``captured`` bytes are a frame; False if it holds no IP.

    ``length`` is the frame's on the wire; what was not captured is filled with zeros where that is safe.
    """
    at = ip_offset(data, i, 0, captured, link)
    if at < 0:
        return False
    end = min(length, data.shape[1])
    for hole in range(captured, end):
        data[i, hole] = 0
    meta[i, m.START] = at
    meta[i, m.END] = end
    meta[i, m.BARE] = 1
    meta[i, m.ENDPOINT] = 0
    meta[i, m.PEER_ADDRESS] = 0
    meta[i, m.PEER_PORT] = 0
    meta[i, m.LOCAL_ADDRESS] = 0
    meta[i, m.KEY2] = 0
    meta[i, m.VERDICT] = _FORWARD
    _enter_geneve(data, meta, i, at, captured)
    if captured < end and _headers_end(data, meta, i) > captured:
        meta[i, m.END] = max(captured, meta[i, m.START])
    return True


@kernel
def _enter_geneve(data, meta, i, at, captured):
    """Make a GENEVE row of an unfragmented IPv4 packet to UDP port 6081."""
    if at + 28 > captured or read8(data, i, at) >> 4 != 4 or read8(data, i, at + 9) != _IP_UDP:
        return
    udp = at + (read8(data, i, at) & 0x0F) * 4
    if udp < at + 20 or udp + 8 > captured or read16(data, i, at + 6) & 0x3FFF != 0:
        return
    if read16(data, i, udp + 2) != GENEVE_PORT or read16(data, i, udp + 4) < 8:
        return
    meta[i, m.BARE] = 0
    meta[i, m.PEER_ADDRESS] = read32(data, i, at + 12)
    meta[i, m.PEER_PORT] = read16(data, i, udp)
    meta[i, m.LOCAL_ADDRESS] = read32(data, i, at + 16)
    meta[i, m.START] = udp + 8
    meta[i, m.END] = min(meta[i, m.END], udp + read16(data, i, udp + 4))


@kernel
def _headers_end(data, meta, i):
    """Where the headers end that a verdict depends on, in a row that was filled up with zeros."""
    decapsulate(data, meta, i)
    inner = meta[i, m.INNER]
    parse(data, meta, i)
    at = meta[i, m.TRANSPORT]
    if at < 0:
        if inner + 1 > meta[i, m.END] or read8(data, i, inner) >> 4 == 4:
            return inner + 20
        return inner + 48
    if at + 40 > data.shape[1]:
        return at + 40
    if meta[i, m.ICMP_KIND] == m.ICMP_ERROR:
        if meta[i, m.FAMILY] == 6:
            return at + 8 + 40 + 8
        return at + 8 + (read8(data, i, at + 8) & 0x0F) * 4 + 8
    if meta[i, m.PROTOCOL] == m.PROTOCOL_TCP:
        return at + max((read8(data, i, at + 12) >> 4) * 4, 20)
    return min(at + 8, meta[i, m.END])
