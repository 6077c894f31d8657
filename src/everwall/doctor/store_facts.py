"""What can be learnt of a Redis or Valkey server by asking it, without leaving anything there.

Each step is taken only when the one before went well: no password is sent to a server whose certificate does
not hold. What the server refuses is a fact too. Permissions are found out by calls that cannot do anything (an
unknown key, a script that is none): a server checks them before it looks at arguments, so NOPERM, and only that,
means that the user may not. One key is written, for ten seconds, and only where CONFIG is forbidden.
"""

from __future__ import annotations

import hashlib
import secrets
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import hiredis
from cryptography import x509

from everwall.limits import (
    BUCKET_FIELDS_SEEN,
    DOCTOR_REPLY_BYTES_MAX,
    DOCTOR_ROUND_TRIPS,
    DOCTOR_TIMEOUT_S,
    FIELD_BYTES,
    PROBE_KEY_TTL_S,
    RECORD_BYTES_MAX,
)
from everwall.store import layout, protocol
from everwall.store.connection import StoreConfig, tls_context
from everwall.store.members import Member, members_key, unsealed
from everwall.store.protocol import ErrorReply, ProtocolError, store_time_ns

_RECEIVE_BYTES = 1 << 16
_NOTHING = object()

Word = bytes | str | int
_pack = cast(Callable[[tuple[Word, ...]], bytes], hiredis.pack_command)


@dataclass(frozen=True)
class Reach:
    """Name and connection."""

    addresses: tuple[str, ...] = ()
    resolve_error: str = ""
    connect_error: str = ""


@dataclass(frozen=True)
class Tls:
    """The server's certificate and what became of its check."""

    error: str = ""
    """Why the handshake failed; empty when the certificate was verified."""
    version: str = ""
    subject: str = ""
    issuer: str = ""
    seconds_left: float | None = None
    """Until the certificate expires; None when the server showed none."""


@dataclass(frozen=True)
class Login:
    """Who may go in."""

    open: bool = False
    """The server answered before anybody said a password."""
    error: str = ""
    """Why the server refused the password, or any conversation."""
    needless: bool = False
    """A password was given, and the server knows none."""


@dataclass(frozen=True)
class Server:
    """What a server said of itself."""

    info: dict[str, str] = field(default_factory=dict)
    info_error: str = ""
    settings: dict[str, str] = field(default_factory=dict)
    """Of CONFIG GET; empty where that is forbidden."""
    settings_error: str = ""
    compact: str = ""
    """Encoding of a full bucket, tried where there are no settings; empty where it could not be tried."""
    refused: dict[str, str] = field(default_factory=dict)
    """Commands that the user may not give, or the server does not know, and its answer."""
    buckets: str | None = None
    """What the cluster agreed on; None when nobody has yet."""
    buckets_error: str = ""
    told: str | None = None
    """What stands under the key of store time; None when nobody has asked for it yet."""
    told_error: str = ""
    now_us: int | None = None
    """The server's clock when that was read."""
    members: tuple[Member, ...] = ()
    """Nodes and their policies, as they stand there: without the cluster's secret they are believed."""
    round_trips_ns: tuple[int, ...] = ()
    skew_ns: int | None = None
    """The server's clock minus this machine's."""


@dataclass(frozen=True)
class StoreFacts:
    """Everything about a store; what was not reached is None."""

    config: StoreConfig
    reach: Reach
    tls: Tls | None = None
    login: Login | None = None
    server: Server | None = None
    broken: str = ""
    """Why the conversation ended before its end."""


def meta_key(prefix: str) -> str:
    """The key under which a cluster agrees on its buckets."""
    return layout.meta_key(prefix).decode()


def clock_key(prefix: str) -> str:
    """The key under which a cluster keeps its time."""
    return protocol.clock_key(prefix).decode()


def bucket_key(prefix: str, name: str) -> str:
    """A key that the permissions of buckets cover."""
    return f"{{{prefix}:0:{name}}}"


def permission_probes(
    prefix: str, *, clustered: bool = False, replicas: bool = False
) -> dict[str, tuple[Word, ...]]:
    """Every command that nodes give, in a form that can do nothing, by the name a refusal is shown under."""
    more: dict[str, tuple[Word, ...]] = {}
    if clustered:
        more |= {
            "CLUSTER INFO": ("CLUSTER", "INFO"),
            "CLUSTER SLOTS": ("CLUSTER", "SLOTS"),
            "ASKING": ("ASKING",),
        }
    if replicas:
        more["WAIT"] = ("WAIT", 0, 1)
    meta, bucket = meta_key(prefix), bucket_key(prefix, "doctor")
    nothing = hashlib.sha1(b"", usedforsecurity=False).hexdigest()
    return {
        "SET": ("SET", meta, "0", "NX", "XX"),  # a contradiction: a syntax error where SET is allowed
        "GET": ("GET", meta),
        "HGET": ("HGET", bucket, "field"),
        "HSET": ("HSET", bucket, "field", "value", "a field without a value"),
        "HDEL": ("HDEL", bucket, "field"),
        "HLEN": ("HLEN", bucket),
        "HKEYS": ("HKEYS", bucket),
        "HVALS": ("HVALS", bucket),
        "HMGET": ("HMGET", bucket, "field"),
        "HGETALL": ("HGETALL", members_key(prefix)),
        "TTL": ("TTL", bucket),
        "DEL": ("DEL", bucket),
        "EXPIRE": ("EXPIRE", bucket, PROBE_KEY_TTL_S),
        "EVALSHA": ("EVALSHA", nothing, 1, bucket),
        "SCRIPT LOAD": ("SCRIPT", "LOAD", "this is no script"),
        "INFO": ("INFO", "server"),
        "TIME": ("TIME",),
        "CLIENT SETNAME": ("CLIENT", "SETNAME", "everwall-doctor"),
        **more,
    }


class _Conversation:
    """One question after the other."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._reader = hiredis.Reader(replyError=ErrorReply, notEnoughData=_NOTHING)

    def ask(self, *words: Word) -> Any:
        """The reply; a server's error is returned. Raises OSError when there is no answer."""
        self._connection.sendall(_pack(words))
        taken = 0
        while (reply := self._reader.gets()) is _NOTHING:
            data = self._connection.recv(_RECEIVE_BYTES)
            taken += len(data)
            if not data:
                raise ConnectionError("the server closed the connection")
            if taken > DOCTOR_REPLY_BYTES_MAX:
                raise ConnectionError("the server's answer has no end")
            self._reader.feed(data)
        return reply


def collect(config: StoreConfig) -> StoreFacts:
    """All facts about the server at ``config``. Raises ValueError for a CA certificate that cannot be read."""
    context = tls_context(config)
    try:
        found = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)
    except OSError as error:
        return StoreFacts(config, Reach(resolve_error=_why(error)))
    reach = Reach(tuple(dict.fromkeys(str(address[0]) for *_, address in found)))
    try:
        connection = _connect(config)
    except OSError as error:
        return StoreFacts(config, replace(reach, connect_error=_why(error)))
    tls = None
    try:
        if context is not None:
            try:
                connection = _secured(connection, context, config)
            except OSError as error:
                return StoreFacts(config, reach, _unverified(config, _tls_error(error)))
            tls = _certificate(connection)
        facts = StoreFacts(config, reach, tls)
        conversation = _Conversation(connection)
        login = _log_in(conversation, config)
        facts = replace(facts, login=login)
        if login.error:
            return facts
        return replace(facts, server=_look_over(conversation, config))
    except (OSError, hiredis.ProtocolError) as error:
        return replace(facts, broken=_why(error))
    finally:
        connection.close()


# Connecting ---------------------------------------------------------------------------------------


def _connect(config: StoreConfig) -> socket.socket:
    connection = socket.create_connection((config.host, config.port), timeout=DOCTOR_TIMEOUT_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _secured(connection: socket.socket, context: ssl.SSLContext, config: StoreConfig) -> ssl.SSLSocket:
    try:
        return context.wrap_socket(connection, server_hostname=config.server_name or config.host)
    except BaseException:
        connection.close()
        raise


def _certificate(connection: socket.socket, error: str = "") -> Tls:
    """What a connection says of its server."""
    assert isinstance(connection, ssl.SSLSocket)
    der = connection.getpeercert(binary_form=True)
    if der is None:
        return Tls(error, connection.version() or "")
    try:
        certificate = x509.load_der_x509_certificate(der)
    except ValueError:
        return Tls(error, connection.version() or "")
    return Tls(
        error,
        connection.version() or "",
        certificate.subject.rfc4514_string(),
        certificate.issuer.rfc4514_string(),
        certificate.not_valid_after_utc.timestamp() - time.time(),
    )


def _unverified(config: StoreConfig, error: str) -> Tls:
    """Look at a certificate that did not hold, to name it; nothing is said over that connection."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with _secured(_connect(config), context, config) as connection:
            return _certificate(connection, error)
    except OSError:
        return Tls("the server does not speak TLS on this port" if _speaks_plain(config) else error)


def _speaks_plain(config: StoreConfig) -> bool:
    """Whether a server answers there without TLS: one without it may wait for ever for the rest of a handshake."""
    try:
        with _connect(config) as connection:
            _Conversation(connection).ask("PING")
    except (OSError, hiredis.ProtocolError):
        return False
    return True


def _tls_error(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    return _why(error)


def _why(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {DOCTOR_TIMEOUT_S:g} s"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or error}"
    return str(getattr(error, "strerror", None) or error)


# Logging in ---------------------------------------------------------------------------------------


def _log_in(conversation: _Conversation, config: StoreConfig) -> Login:
    first = conversation.ask("PING")
    # NOPERM is an answer to somebody who is in already.
    is_open = not isinstance(first, ErrorReply) or first.code == "NOPERM"
    if not is_open and first.code not in ("NOAUTH", "LOADING", "MASTERDOWN"):
        return Login(error=str(first))
    if config.password is None:
        return Login(open=is_open, error="" if is_open else str(first))
    user = (config.username,) if config.username else ()
    reply = conversation.ask("AUTH", *user, config.password)
    if not isinstance(reply, ErrorReply):
        return Login(open=is_open)
    if "without any password configured" in str(reply):
        return Login(open=is_open, needless=True)
    return Login(open=is_open, error=str(reply))


# Looking over -------------------------------------------------------------------------------------


def _look_over(conversation: _Conversation, config: StoreConfig) -> Server:
    ask, prefix = conversation.ask, config.prefix
    probes = permission_probes(prefix, clustered=bool(config.cluster), replicas=bool(config.wait_replicas))
    refused = _refused(ask, probes)
    info = ask("INFO") if "INFO" not in refused else ErrorReply(refused["INFO"])
    if isinstance(info, ErrorReply):
        server = Server(info_error=str(info), refused=refused)
    else:
        server = Server(_pairs(info), refused=refused)
    settings = ask("CONFIG", "GET", "hash-max-listpack-*")
    if not isinstance(settings, list):
        server = replace(server, settings_error=str(settings), compact=_try_bucket(ask, prefix, server))
    else:
        words = [_text(word) for word in settings]
        server = replace(server, settings=dict(zip(words[::2], words[1::2], strict=False)))
    buckets = ask("GET", meta_key(prefix))
    if isinstance(buckets, ErrorReply):
        server = replace(server, buckets_error=str(buckets))
    elif buckets is not None:
        server = replace(server, buckets=_text(buckets))
    told = ask("GET", clock_key(prefix))
    if isinstance(told, ErrorReply):
        server = replace(server, told_error=str(told))
    else:
        server = replace(server, told=told if told is None else _text(told), now_us=_now_us(ask))
    server = replace(server, members=_members(ask(*permission_probes(prefix)["HGETALL"])))
    if "TIME" in refused:
        return server
    trips, skew = _round_trips(ask)
    return replace(server, round_trips_ns=trips, skew_ns=skew)


def _refused(ask: Callable[..., Any], probes: dict[str, tuple[Word, ...]]) -> dict[str, str]:
    refused = {}
    for name, words in probes.items():
        reply = ask(*words)
        unknown = isinstance(reply, ErrorReply) and str(reply).startswith("ERR unknown")
        if isinstance(reply, ErrorReply) and (reply.code == "NOPERM" or unknown):
            refused[name] = str(reply)
    return refused


def _try_bucket(ask: Callable[..., Any], prefix: str, server: Server) -> str:
    """How the server encodes a bucket as full as buckets get; the key is gone after some seconds."""
    if server.info.get("role") != "master" or {"HSET", "EXPIRE"} & server.refused.keys():
        return ""
    key = bucket_key(prefix, f"doctor-{secrets.token_hex(8)}")
    fields = [secrets.token_bytes(size) for _ in range(BUCKET_FIELDS_SEEN) for size in _RECORD_SIZES]
    if isinstance(ask("HSET", key, *fields), ErrorReply):
        return ""
    ask("EXPIRE", key, PROBE_KEY_TTL_S)
    encoding = ask("OBJECT", "ENCODING", key)
    return "" if encoding is None or isinstance(encoding, ErrorReply) else _text(encoding)


_RECORD_SIZES = (FIELD_BYTES, RECORD_BYTES_MAX)


def _members(reply: Any) -> tuple[Member, ...]:
    """Whoever told its policy within the last minute; nobody where the reply makes no sense."""
    if not isinstance(reply, list) or not all(isinstance(word, bytes) for word in reply):
        return ()
    return tuple(unsealed(dict(zip(reply[::2], reply[1::2], strict=False)), int(time.time())))


def _now_us(ask: Callable[..., Any]) -> int | None:
    try:
        return store_time_ns(ask("TIME")) // 1000
    except ProtocolError:
        return None


def _round_trips(ask: Callable[..., Any]) -> tuple[tuple[int, ...], int | None]:
    """Times of so many questions one after another, and the skew seen in the quickest."""
    trips, skews = [], []
    for _ in range(DOCTOR_ROUND_TRIPS):
        here, before = time.time_ns(), time.monotonic_ns()
        reply = ask("TIME")
        trip = time.monotonic_ns() - before
        try:
            skews.append((trip, store_time_ns(reply) - here - trip // 2))
        except ProtocolError:
            return (), None
        trips.append(trip)
    return tuple(trips), min(skews)[1]


def _pairs(info: Any) -> dict[str, str]:
    """The lines of INFO."""
    lines = (line.partition(":") for line in _text(info).splitlines())
    return {name: value for name, colon, value in lines if colon}


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def percentile_ns(trips: tuple[int, ...], share: float) -> int:
    """The round trip that ``share`` of all do not exceed."""
    return sorted(trips)[min(len(trips) - 1, int(len(trips) * share))]
