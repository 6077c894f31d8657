"""A DNS server that says what a test wants."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

Reply = Callable[[dns.message.Message], dns.message.Message]


def _both(address: str, port: int) -> tuple[socket.socket, socket.socket]:
    """Sockets of both kinds with one number; a free one for TCP may be taken for UDP."""
    while True:
        stream, datagrams = (
            socket.create_server((address, port)),
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        )
        try:
            datagrams.bind((address, stream.getsockname()[1]))
        except OSError:
            stream.close()
            datagrams.close()
            if port:
                raise
        else:
            return stream, datagrams


class Nameserver:
    """A DNS server on loopback, on UDP and TCP of one port; ``reply`` may be exchanged while it runs."""

    def __init__(self, reply: Reply, address: str = "127.0.0.1", port: int = 0) -> None:
        self.asked: list[str] = []
        self.reply = reply
        self._tcp, self._udp = _both(address, port)
        self.port = self._tcp.getsockname()[1]
        for serve in (self._serve_udp, self._serve_tcp):
            threading.Thread(target=serve, daemon=True).start()

    def _answer(self, wire: bytes, over: str) -> bytes:
        query = dns.message.from_wire(wire)
        self.asked.append(f"{over} {query.question[0].to_text()}")
        reply = self.reply(query)
        if over == "udp" and reply.flags & dns.flags.TC:
            reply.answer.clear()
        else:
            reply.flags &= ~dns.flags.TC
        return reply.to_wire()

    def _serve_udp(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                wire, peer = self._udp.recvfrom(4096)
                if not wire:
                    return  # shut down
                self._udp.sendto(self._answer(wire, "udp"), peer)

    def _serve_tcp(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                stream, _ = self._tcp.accept()
                with stream:
                    size = int.from_bytes(stream.recv(2), "big")
                    wire = self._answer(stream.recv(size), "tcp")
                    stream.sendall(len(wire).to_bytes(2, "big") + wire)

    def close(self) -> None:
        for end in (self._udp, self._tcp):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def records(*rows: str, rcode: dns.rcode.Rcode = dns.rcode.NOERROR, truncated: bool = False) -> Reply:
    """Answers with those of ``rows`` ("name type value") whose type was asked for, and with every alias."""

    def reply(query: dns.message.Message) -> dns.message.Message:
        made = dns.message.make_response(query)
        made.set_rcode(rcode)
        wanted = dns.rdatatype.to_text(query.question[0].rdtype)
        for row in rows:
            name, kind, value = row.split()
            if kind in (wanted, "CNAME"):
                made.answer.append(dns.rrset.from_text(name, 60, "IN", kind, value))
        if truncated:
            made.flags |= dns.flags.TC
        return made

    return reply
