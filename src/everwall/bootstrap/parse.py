"""From the keys and values that were read to the fields of an ``InitCfg``, or an error that names file, line and key.

The keys and tokens are those that VM-Series firewalls are bootstrapped with (the vendor's page
"Create the init-cfg.txt File"), so that an existing file works here; keys of our own begin with
``everwall-``. What is recognised and not used is named in a warning with the reason, and so is what is not known
at all: nothing is ignored in silence.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from pydantic import SecretBytes, SecretStr

from everwall.bootstrap.associations import EXPECTED as ASSOCIATION_EXPECTED
from everwall.bootstrap.associations import Association, parse_association
from everwall.bootstrap.entries import Entry, Kind, Layer, merged, read_init_cfg, shown_value, words_of
from everwall.bootstrap.faults import BootstrapError, ClusterSecretError, CommandError, ParameterError
from everwall.bootstrap.init_cfg import PORTS, InitCfg, RedisEndpoint
from everwall.bootstrap.keys import (
    ASSOCIATE_TOKEN,
    INSPECT_TOKEN,
    JUMBO_MODE,
    MODES,
    RESILIENCY_TOKENS,
    SWAP_KEY,
    SWAP_MODE,
    TOKENS,
    UNUSED_MODES,
    UNUSED_TOKENS,
    WORKERS_TOKEN,
    not_used,
)
from everwall.bootstrap.networking import read_networking
from everwall.bootstrap.secret import EXPECTED as SECRET_EXPECTED
from everwall.bootstrap.secret import is_secret, looks_random, parse_secret
from everwall.config import did_you_mean, read_password, read_text, shown
from everwall.limits import (
    HEALTH_PORT_DEFAULT,
    JOIN_GRACE_S_DEFAULT,
    JOIN_GRACE_S_MAX,
    REPLICAS_MAX,
    SESSIONS_DEFAULT,
    SESSIONS_MAX,
    SESSIONS_MIN,
    STORE_NAME_MAX,
    STORE_PREFIX_DEFAULT,
    WORKERS_MAX,
)
from everwall.modes import ASYNC, MODE_EXPECTED, parse_mode

PORT_MAX = 65535
UNIX_PATH_MAX = 107
"""Bytes of a UNIX socket's path (``sun_path`` of Linux, less the final zero)."""
INTERFACE_NAME_MAX = 15

_HOST_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"{_HOST_LABEL}(?:\.{_HOST_LABEL})*\.?")

_ENDPOINT_EXPECTED = "host:port: 10.0.0.5:6379, [2001:db8::5]:6379 or redis.example.com:6379"


Value = TypeVar("Value")
Default = TypeVar("Default")


def parse_init_cfg(
    text: str, file: str | Path = "init-cfg.txt", platform: str = ""
) -> tuple[InitCfg, list[str]]:
    """Read the text of an init-cfg.txt; paths in it are relative to the folder of ``file``."""
    return parse_layers([read_init_cfg(text, str(file), Path(file).parent)], platform)


def parse_layers(layers: Sequence[Layer], platform: str = "") -> tuple[InitCfg, list[str]]:
    """Read what one or several sources say, the first before the second; with warnings.

    ``platform`` (as ``machine.Machine`` has it) says which networking keys count. Raises BootstrapError.
    """
    return _Parser(layers, platform).parse()


class _Parser:
    """From entries to fields."""

    def __init__(self, layers: Sequence[Layer], platform: str) -> None:
        self.layers = layers
        self.platform = platform
        self.entries, self.overruled = merged(layers)

    def parse(self) -> tuple[InitCfg, list[str]]:
        modes = self._op_command_modes()
        commands, associations = self._plugin_op_commands()
        cfg = InitCfg(
            file=self.layers[0].file,
            hostname=self._read("hostname", self._host, None),
            networking=read_networking(self.entries, self.platform, self._warn, self.layers[0].file),
            mgmt_interface_swap=SWAP_MODE in modes or self._swap_key(),
            jumbo_frame=JUMBO_MODE in modes,
            session_resiliency=bool(commands.get(RESILIENCY_TOKENS[0])),
            gwlb_inspect=bool(commands.get(INSPECT_TOKEN)),
            associations=associations,
            redis_endpoint=self._read("redis-endpoint", self._endpoint, None),
            redis_auth=self._read("redis-auth", self._auth, None),
            redis_auth_file=self._read("everwall-redis-auth-file", self._auth_file, None),
            redis_sentinels=self._read("everwall-redis-sentinel", self._endpoints, ()),
            redis_sentinel_service=self._read(
                "everwall-redis-sentinel-service", self._name("the name that Sentinels watch it by"), None
            ),
            redis_sentinel_user=self._read(
                "everwall-redis-sentinel-user", self._name("the name of an ACL user"), None
            ),
            redis_sentinel_auth=self._read("everwall-redis-sentinel-auth", self._auth, None),
            redis_cluster=self._read("everwall-redis-cluster", self._endpoints, ()),
            wait_replicas=self._read("everwall-wait-replicas", self._integer(0, REPLICAS_MAX), 0),
            redis_user=self._read("everwall-redis-user", self._name("the name of an ACL user"), None),
            redis_certificate=self._read("redis-certificate", self._certificate, None),
            redis_tls=self._read("everwall-redis-tls", self._yes_no, True),
            redis_server_name=self._read("everwall-redis-server-name", self._host, None),
            redis_prefix=self._read("everwall-redis-prefix", self._prefix, STORE_PREFIX_DEFAULT),
            cluster_secret=self._cluster_secret("everwall-cluster-secret"),
            cluster_secret_second=self._cluster_secret("everwall-cluster-secret-second"),
            cluster_secret_id=self._read("everwall-cluster-secret-id", self._secret_id, None),
            resiliency_mode=self._read("everwall-resiliency-mode", self._mode, ASYNC),
            geneve_sources=self._read("everwall-geneve-sources", self._sources, None),
            health_port=self._read("everwall-health-port", self._integer(1, PORT_MAX), HEALTH_PORT_DEFAULT),
            max_sessions=self._read(
                "everwall-max-sessions", self._integer(SESSIONS_MIN, SESSIONS_MAX), SESSIONS_DEFAULT
            ),
            join_grace_s=self._read("everwall-join-grace", self._seconds, JOIN_GRACE_S_DEFAULT),
            policy=self._read("everwall-policy", self._existing, None),
            accept_ports=self._read("everwall-accept-ports-for-applications", self._yes_no, False),
            data_interface=self._read("everwall-data-interface", self._interface, None),
            mgmt_interface=self._read("everwall-mgmt-interface", self._interface, None),
            data_address=self._read("everwall-data-address", self._ipv4, None),
            port=self._read("everwall-port", self._one_of(PORTS), "auto"),
            cut_through=self._read("everwall-cut-through", self._one_of(("on", "off")), "on") == "on",
            workers=self._read("everwall-workers", self._integer(0, WORKERS_MAX), 0)
            or commands.get(WORKERS_TOKEN, 1),
            worker_cores=self._read("everwall-worker-cores", self._cores, None),
            control_socket=self._read("everwall-control-socket", self._socket_path, None),
            traffic_log=self._read("everwall-traffic-log", self._path, None),
        )
        self._look_over(cfg)
        said = [text for layer in self.layers for _, text in sorted(layer.warnings)]
        return cfg, [*said, *self.overruled]

    def _warn(self, entry: Entry, text: str) -> None:
        layer = next(layer for layer in self.layers if layer.file == entry.file)
        layer.warn(entry.line, entry.key, text)

    def _error(
        self,
        entry: Entry,
        expected: str,
        value: str | None = None,
        kind: type[BootstrapError] = ParameterError,
    ) -> BootstrapError:
        return kind(
            entry.file,
            expected,
            line=entry.line or None,
            key=entry.key,
            value=shown_value(entry) if value is None else value,
        )

    def _read(self, key: str, read: Callable[[Entry], Value], default: Default) -> Value | Default:
        entry = self.entries.get(key)
        return default if entry is None or not entry.value else read(entry)

    # Lists of words -----------------------------------------------------------------------------------

    def _words(self, key: str) -> Iterator[tuple[Entry, str]]:
        """The words of a list, parted by commas; spaces are tolerated with a warning."""
        entry = self.entries.get(key)
        if entry is None:
            return
        if key == "plugin-op-commands" and re.search(r"\s", entry.value):
            self._warn(entry, "spaces in the list are ignored here, not everywhere")
        for word in words_of(entry):
            yield entry, word

    def _op_command_modes(self) -> set[str]:
        """Those of ``MODES`` that are on."""
        found = set()
        for entry, word in self._words("op-command-modes"):
            if word in MODES:
                found.add(word)
            elif word in UNUSED_MODES:
                self._warn(entry, f"{word} is {not_used(UNUSED_MODES[word])}")
            else:
                hint = did_you_mean(word, (*MODES, *UNUSED_MODES))
                self._warn(entry, f"unknown mode {shown(word)}{hint}")
        return found

    def _swap_key(self) -> bool:
        """``mgmt-interface-swap=enable``, which stands in user data; in a file it does not count."""
        entry = self.entries.get(SWAP_KEY)
        kinds = {layer.file: layer.kind for layer in self.layers}
        if entry is None or not entry.value or kinds[entry.file] is Kind.INIT_CFG:
            return False
        if entry.value not in ("enable", "disable"):
            raise self._error(entry, "enable or disable", entry.value)
        if kinds[entry.file] is Kind.SECRET:
            self._warn(
                entry, f"counts here; the vendor's firewall wants op-command-modes={SWAP_MODE} in a secret"
            )
        return entry.value == "enable"

    def _plugin_op_commands(self) -> tuple[dict[str, int], tuple[Association, ...]]:
        """The arguments of the known commands, by the first spelling of each; and the endpoints' interfaces."""
        found: dict[str, int] = {}
        associations: dict[int, Association] = {}
        for entry, word in self._words("plugin-op-commands"):
            name, _, argument = word.partition(":")
            choices: dict[str, int]
            if name in RESILIENCY_TOKENS:
                token, choices = RESILIENCY_TOKENS[0], {"true": True, "false": False}
                expected = f"{name}:True or {name}:False"
            elif name == INSPECT_TOKEN:
                token, choices = name, {"enable": True, "disable": False}
                expected = f"{name}:enable or {name}:disable"
            elif name == WORKERS_TOKEN:
                token, choices = name, {str(number): number for number in range(1, WORKERS_MAX + 1)}
                expected = f"{name}:1 to {name}:{WORKERS_MAX}"
            elif name == ASSOCIATE_TOKEN:
                self._associate(entry, word, argument, associations)
                continue
            else:
                if name in UNUSED_TOKENS:
                    self._warn(entry, f"{shown(word)} is {not_used(UNUSED_TOKENS[name])}")
                else:
                    hint = did_you_mean(name, (*TOKENS, *UNUSED_TOKENS))
                    self._warn(entry, f"unknown command {shown(word)}{hint}")
                continue
            if argument.lower() not in choices:
                raise self._error(entry, expected, word, CommandError)
            value = choices[argument.lower()]
            if found.setdefault(token, value) != value:
                raise self._error(entry, f"one word about {token}, not two that differ", word, CommandError)
        return found, tuple(associations.values())

    def _associate(
        self, entry: Entry, word: str, argument: str, associations: dict[int, Association]
    ) -> None:
        parsed = parse_association(argument)
        if parsed is None:
            raise self._error(entry, ASSOCIATION_EXPECTED, word, CommandError)
        endpoint, interface = parsed
        before = associations.setdefault(endpoint, Association(endpoint, interface, entry.file, entry.line))
        if before.interface != interface:
            raise self._error(entry, f"each endpoint once (it is on {before.interface})", word, CommandError)

    # Values -------------------------------------------------------------------------------------------

    def _host(self, entry: Entry) -> str:
        if not _is_host(entry.value):
            raise self._error(entry, "a host name")
        return entry.value

    def _endpoints(self, entry: Entry) -> tuple[RedisEndpoint, ...]:
        words = [word for _, word in self._words(entry.key)]
        found = tuple(self._endpoint(entry._replace(value=word)) for word in words)
        if not found or len(set(found)) < len(found):
            raise self._error(entry, "host:port of servers, each once, parted by commas")
        return found

    def _auth_file(self, entry: Entry) -> Path:
        path = self._existing(entry)
        if path.stat().st_mode & 0o077:
            self._warn(entry, f"{path} can be read by others than its owner")
        read_password(path, entry.key)
        return path

    def _endpoint(self, entry: Entry) -> RedisEndpoint:
        bracketed = re.fullmatch(r"\[([^\]]*)\]:([0-9]{1,5})", entry.value)
        plain = re.fullmatch(r"([^:\[\]\s]+):([0-9]{1,5})", entry.value)
        found = bracketed or plain
        if found is None:
            raise self._error(entry, _ENDPOINT_EXPECTED)
        host, port = found[1], int(found[2])
        if not 1 <= port <= PORT_MAX:
            raise self._error(entry, f"a port from 1 to {PORT_MAX}")
        try:
            address: ipaddress.IPv4Address | ipaddress.IPv6Address | None = ipaddress.ip_address(host)
        except ValueError:
            address = None
        if bracketed:
            if address is None or address.version != 6:
                raise self._error(entry, "an IPv6 address in the brackets")
        elif address is None and not _is_host(host):
            raise self._error(entry, _ENDPOINT_EXPECTED)
        return RedisEndpoint(host, port)

    def _auth(self, entry: Entry) -> SecretStr:
        return SecretStr(entry.value)

    def _prefix(self, entry: Entry) -> str:
        if not re.fullmatch(rf"[A-Za-z0-9._-]{{1,{STORE_NAME_MAX}}}", entry.value):
            raise self._error(
                entry, f"letters, digits, dots, hyphens and underscores, at most {STORE_NAME_MAX} of them"
            )
        return entry.value

    def _certificate(self, entry: Entry) -> bytes:
        expected = "the base64 form of a PEM certificate, in one line"
        try:
            pem = base64.b64decode(entry.value, validate=True)
            if not x509.load_pem_x509_certificates(pem):
                raise ValueError
        except (ValueError, binascii.Error):
            # What was pasted here by mistake may be a private key.
            raise self._secret_error(entry, expected) from None
        if b"PRIVATE KEY" in pem:
            raise self._secret_error(entry, "certificates only, no private key")
        return pem

    @staticmethod
    def _secret_error(entry: Entry, expected: str) -> ParameterError:
        return ParameterError(entry.file, expected, line=entry.line or None, key=entry.key)

    def _yes_no(self, entry: Entry) -> bool:
        if entry.value not in ("yes", "no"):
            raise self._error(entry, "yes or no")
        return entry.value == "yes"

    def _name(self, what: str) -> Callable[[Entry], str]:
        def read(entry: Entry) -> str:
            if re.search(r"\s", entry.value) or len(entry.value) > STORE_NAME_MAX:
                raise self._error(entry, f"{what}: no spaces, at most {STORE_NAME_MAX} characters")
            return entry.value

        return read

    def _integer(self, low: int, high: int) -> Callable[[Entry], int]:
        def read(entry: Entry) -> int:
            if not re.fullmatch(r"[0-9]{1,12}", entry.value) or not low <= int(entry.value) <= high:
                raise self._error(entry, f"a whole number from {low} to {high}")
            return int(entry.value)

        return read

    def _seconds(self, entry: Entry) -> float:
        if re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,9})?", entry.value) is None or not (
            0 <= float(entry.value) <= JOIN_GRACE_S_MAX
        ):
            raise self._error(entry, f"seconds from 0 to {JOIN_GRACE_S_MAX:g}, as 10 or 0.5")
        return float(entry.value)

    def _cores(self, entry: Entry) -> tuple[int, ...]:
        words = [word for _, word in self._words(entry.key)]
        if not all(re.fullmatch(r"[0-9]{1,4}", word) for word in words) or len(set(words)) < len(words):
            raise self._error(entry, "numbers of processors, each once, as 0,2")
        return tuple(map(int, words))

    def _sources(self, entry: Entry) -> tuple[ipaddress.IPv4Network, ...]:
        sources = []
        for word in (word for _, word in self._words(entry.key)):
            parsed = None
            if re.fullmatch(r"[0-9.]+(/[0-9]{1,2})?", word):
                try:
                    parsed = ipaddress.IPv4Network(word)
                except ValueError:
                    parsed = None
            if parsed is None:
                raise self._error(
                    entry, "IPv4 prefixes without bits after the prefix, as 10.0.1.0/24,10.0.2.0/24", word
                )
            if parsed.prefixlen == 0:
                self._warn(entry, f"{word}: whoever reaches the data interface is believed")
            sources.append(parsed)
        if not sources:
            raise self._error(entry, "IPv4 prefixes, as 10.0.1.0/24,10.0.2.0/24")
        return tuple(sources)

    def _ipv4(self, entry: Entry) -> ipaddress.IPv4Address:
        try:
            return ipaddress.IPv4Address(entry.value)
        except ValueError:
            raise self._error(entry, "an IPv4 address") from None

    def _interface(self, entry: Entry) -> str:
        name = entry.value
        if len(name) > INTERFACE_NAME_MAX or re.search(r"[\s/]", name) or name in (".", ".."):
            raise self._error(entry, f"the name of an interface, at most {INTERFACE_NAME_MAX} characters")
        return name

    def _one_of(self, words: Sequence[str]) -> Callable[[Entry], str]:
        def read(entry: Entry) -> str:
            if entry.value not in words:
                raise self._error(entry, f"{', '.join(words[:-1])} or {words[-1]}")
            return entry.value

        return read

    def _mode(self, entry: Entry) -> int:
        mode = parse_mode(entry.value)
        if mode is None:
            raise self._error(entry, MODE_EXPECTED)
        return mode

    def _path(self, entry: Entry) -> Path:
        return entry.folder / entry.value

    def _existing(self, entry: Entry) -> Path:
        path = self._path(entry)
        # os.path answers False where pathlib raises: for a name too long, or no name at all.
        if not os.path.isfile(path):
            where = "" if is_secret(entry.value) else f" ({path} is none)"
            raise self._error(entry, f"an existing file{where}")
        return path

    def _socket_path(self, entry: Entry) -> Path:
        path = self._path(entry)
        if len(bytes(path)) > UNIX_PATH_MAX:
            raise self._error(entry, f"a path of at most {UNIX_PATH_MAX} bytes")
        return path

    def _secret_id(self, entry: Entry) -> str:
        if not re.fullmatch(r"[A-Za-z0-9/_+=.@:-]{1,512}", entry.value):
            raise self._error(entry, "the name or ARN of a secret: letters, digits and /_+=.@:-")
        return entry.value

    def _cluster_secret(self, key: str) -> SecretBytes | None:
        entry = self._only_one_of(key, f"{key}-file", f"{key}-id", kind=ClusterSecretError)
        if entry is None or entry.key == f"{key}-id":
            return None
        text = entry.value
        if entry.key == f"{key}-file":
            path = self._existing(entry)
            if path.stat().st_mode & 0o077:
                self._warn(entry, f"{path} can be read by others than its owner")
            text = read_text(path, entry.key)
        secret = parse_secret(text)
        if secret is None:
            raise self._error(entry, SECRET_EXPECTED, kind=ClusterSecretError)
        if not looks_random(secret):
            self._warn(entry, "does not look random; try: openssl rand -hex 32")
        return secret

    # Keys that depend on one another ------------------------------------------------------------------

    def _only_one_of(self, *keys: str, kind: type[BootstrapError] = ParameterError) -> Entry | None:
        """The one of these that is given, if any."""
        given = [self.entries[key] for key in keys if key in self.entries and self.entries[key].value]
        if len(given) > 1:
            first, second = given[:2]
            one_file = first.line and first.file == second.file
            where = f"line {first.line}" if one_file else first.place
            there = f"line {second.line}" if one_file else second.place
            expected = f"only one of {first.key} ({where}) and {second.key} ({there})"
            raise self._error(second, expected, kind=kind)
        return given[0] if given else None

    def _look_over(self, cfg: InitCfg) -> None:
        self._only_one_of("redis-endpoint", "everwall-redis-sentinel", "everwall-redis-cluster")
        self._only_one_of("redis-auth", "everwall-redis-auth-file")
        if cfg.redis_sentinels and cfg.redis_sentinel_service is None:
            sentinels = self.entries["everwall-redis-sentinel"]
            expected = "everwall-redis-sentinel-service beside it: what Sentinels call the store"
            raise self._error(sentinels, expected)
        for key in ("service", "user", "auth"):
            entry = self._read(f"everwall-redis-sentinel-{key}", lambda entry: entry, None)
            if entry is not None and not cfg.redis_sentinels:
                self._warn(entry, "not used: everwall-redis-sentinel is not set")
        if cfg.cluster_secret_second is not None:
            entry = self._read("everwall-cluster-secret-second", lambda entry: entry, None)
            entry = entry or self.entries["everwall-cluster-secret-second-file"]
            if cfg.cluster_secret is None and cfg.cluster_secret_id is None:
                raise self._error(entry, "everwall-cluster-secret beside it, which is what is written with")
            if cfg.cluster_secret == cfg.cluster_secret_second:
                raise self._error(entry, "another secret than everwall-cluster-secret")
            if cfg.redis_cluster:
                raise self._error(
                    entry, "no second secret with everwall-redis-cluster: a record has one place there"
                )
        if not cfg.redis_tls:
            tls = self.entries["everwall-redis-tls"]
            if not cfg.redis_servers or not all(server.loopback for server in cfg.redis_servers):
                raise self._error(tls, "yes: only a redis-endpoint on loopback may do without TLS")
            for key in ("redis-certificate", "everwall-redis-server-name"):
                if key in self.entries:
                    self._warn(self.entries[key], "not used: everwall-redis-tls is no")
        asked = self._read("everwall-cut-through", lambda entry: entry, None)
        if asked is not None and cfg.cut_through and cfg.port in ("raw", "udp"):
            self._warn(asked, f"not used: everwall-port is {cfg.port}, and only xdp has it")


def _is_host(text: str) -> bool:
    labels = text.rstrip(".").split(".")
    # A name whose last label is a number would be taken for an address (RFC 1123, section 2.1).
    return len(text) <= 253 and bool(_HOST.fullmatch(text)) and not labels[-1].isdigit()
