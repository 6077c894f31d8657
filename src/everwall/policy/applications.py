"""The standard ports of applications, for as long as rules are matched by ports alone.

Ports are those of IANA's registry and of the applications' own documentation. An application that chooses its
ports as it goes (peer to peer, media streams) has no row: no rule that names it can be turned into ports.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from everwall.policy.model import Service
from everwall.policy.words import parse_service

APPLICATION_DEFAULT = "application-default"
"""As a rule's service: each application at its standard ports only."""

_WORDS = {
    "activesync": "tcp/80 tcp/443",
    "amqp": "tcp/5671-5672",
    "apt-get": "tcp/80 tcp/443",
    "bgp": "tcp/179",
    "cassandra": "tcp/7000-7001 tcp/9042 tcp/9160",
    "consul": "tcp/8300-8302 udp/8301-8302 tcp/8500-8502 tcp/8600 udp/8600",
    "dhcp": "udp/67-68",
    "dhcpv6": "udp/546-547",
    "dns": "tcp/53 udp/53",
    "dns-base": "tcp/53 udp/53",
    "dns-over-https": "tcp/443",
    "dns-over-tls": "tcp/853",
    "docker": "tcp/2375-2376",
    "elasticsearch": "tcp/9200 tcp/9300",
    "etcd": "tcp/2379-2380",
    "facebook-base": "tcp/80 tcp/443",
    "finger": "tcp/79",
    "ftp": "tcp/21",
    "git": "tcp/9418",
    "git-base": "tcp/80 tcp/443 tcp/9418",
    "github-base": "tcp/80 tcp/443 tcp/22",
    "google-base": "tcp/80 tcp/443",
    "gre": "protocol/47",
    "http2": "tcp/80 tcp/443",
    "http-proxy": "tcp/3128 tcp/8080",
    "icmp": "icmp",
    "ike": "udp/500 udp/4500",
    "imap": "tcp/143 tcp/993",
    "influxdb": "tcp/8086 tcp/8088",
    "ipsec-ah": "protocol/51",
    "ipsec-esp": "protocol/50",
    "ipsec-esp-udp": "udp/4500",
    "ipv6-icmp": "icmp",
    "irc-base": "tcp/194 tcp/6660-6669 tcp/6697",
    "iscsi": "tcp/860 tcp/3260",
    "kafka": "tcp/9092-9093",
    "kerberos": "tcp/88 udp/88",
    "l2tp": "udp/1701",
    "ldap": "tcp/389 udp/389 tcp/636 tcp/3268-3269",
    "memcached": "tcp/11211 udp/11211",
    "mongodb": "tcp/27017-27019",
    "mqtt": "tcp/1883 tcp/8883",
    "ms-ds-smb": "tcp/445",
    "ms-office365-base": "tcp/80 tcp/443",
    "ms-rdp": "tcp/3389 udp/3389",
    "ms-update": "tcp/80 tcp/443",
    "msrpc-base": "tcp/135",
    "mssql-db": "tcp/1433",
    "mssql-mon": "udp/1434",
    "mysql": "tcp/3306",
    "nats": "tcp/4222 tcp/6222",
    "netbios-dg": "udp/138",
    "netbios-ns": "udp/137",
    "netbios-ss": "tcp/139",
    "nfs": "tcp/2049 udp/2049",
    "ntp": "udp/123",
    "ntp-base": "udp/123",
    "openvpn": "udp/1194 tcp/1194 tcp/443",
    "oracle": "tcp/1521",
    "ospf": "protocol/89",
    "ping": "icmp",
    "ping6": "icmp",
    "pop3": "tcp/110 tcp/995",
    "portmapper": "tcp/111 udp/111",
    "postgres": "tcp/5432",
    "pptp": "tcp/1723",
    "quic": "udp/443",
    "quic-base": "udp/443",
    "radius": "udp/1812-1813",
    "redis": "tcp/6379",
    "rsync": "tcp/873",
    "salesforce-base": "tcp/443",
    "sctp": "protocol/132",
    "sip": "tcp/5060-5061 udp/5060",
    "smtp": "tcp/25 tcp/465 tcp/587",
    "smtp-base": "tcp/25 tcp/465 tcp/587",
    "snmp": "udp/161",
    "snmp-base": "udp/161",
    "snmp-trap": "udp/162",
    "socks": "tcp/1080",
    "ssh": "tcp/22",
    "ssl": "tcp/443",
    "stun": "tcp/3478 udp/3478",
    "syslog": "udp/514 tcp/514 tcp/6514",
    "tacacs-plus": "tcp/49",
    "telnet": "tcp/23",
    "tftp": "udp/69",
    "traceroute": "udp/33434-33534 icmp",
    "vnc-base": "tcp/5900-5901",
    "vxlan": "udp/4789",
    "web-browsing": "tcp/80",
    "websocket": "tcp/80 tcp/443",
    "whois": "tcp/43",
    "windows-remote-management": "tcp/5985-5986",
    "wireguard": "udp/51820",
    "xmpp-base": "tcp/5222-5223 tcp/5269",
    "yum": "tcp/80 tcp/443",
    "zabbix": "tcp/10050-10051",
    "zookeeper": "tcp/2181 tcp/2888 tcp/3888",
}


def _services(words: str) -> tuple[Service, ...]:
    found: list[Service] = []
    for word in words.split():
        parsed = parse_service(word)
        assert not isinstance(parsed, str), word
        found += parsed
    return tuple(found)


STANDARD_PORTS: Mapping[str, tuple[Service, ...]] = {name: _services(words) for name, words in _WORDS.items()}


class ByPorts(NamedTuple):
    """A rule's service in place of its applications, and how it is said."""

    service: tuple[Service, ...] | None
    said: str


def standard_ports(
    applications: tuple[str, ...], known: Mapping[str, tuple[Service, ...]]
) -> tuple[Service, ...] | str:
    """The standard ports of all of them; else what was expected of the first that has none."""
    unknown = [name for name in applications if name not in known]
    if unknown:
        return (
            f"applications whose standard ports are known ({unknown[0]} is not among them: "
            "say them under applications)"
        )
    return tuple(dict.fromkeys(entry for name in applications for entry in known[name]))


def by_ports(
    applications: tuple[str, ...] | None,
    service: tuple[Service, ...] | str | None,
    action: str,
    known: Mapping[str, tuple[Service, ...]],
) -> ByPorts | str:
    """What a rule about applications matches when only ports can be matched; else why it cannot be.

    ``service`` is that of the rule, or APPLICATION_DEFAULT. A rule that allows gets no port that it does not name;
    one that refuses loses none, so that nothing passes that it would have stopped.
    """
    if isinstance(service, tuple):
        return ByPorts(service, "its service")
    if action != "allow":
        if service is None:
            return "a service: an application that is refused on every port would pass on all but its standard ports"
        if applications is None:
            return ByPorts(None, "any port")
    found = standard_ports(tuple(known) if applications is None else applications, known)
    if isinstance(found, str):
        return found
    return ByPorts(found, "their standard ports")
