"""Which addresses images may be fetched from: public ones, one trusted origin, and what the operator names.

Whoever opens a connection asks here for addresses and connects to one of those, so nothing can change between check and connect.
"""

from __future__ import annotations

import ipaddress
import queue
import socket
import threading

from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from sam2_backend.errors import MediaRefusedError, MediaUnreachableError, SettingsError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Origin = tuple[str, str, int]
"""Scheme, host and port, all lower case, default ports filled in."""

GLOBAL_UNICAST_V6 = ipaddress.ip_network("2000::/3")
"""Outside it lie loopback, mapped, compatible and translated IPv4 (NAT64), local and multicast addresses."""

RESERVED: tuple[Network, ...] = tuple(
    ipaddress.ip_network(text)
    # Not refused by `is_global` on every Python that this runs on: shared, IETF, 6to4 relay and benchmark networks;
    # Teredo, 6to4 (both wrap any IPv4 address) and the two for documentation.
    for text in ("100.64.0.0/10", "192.0.0.0/24", "192.88.99.0/24", "198.18.0.0/15", "2001::/32", "2002::/16", "2001:db8::/32", "3fff::/20")
)


def is_public(address: str) -> bool:
    """Whether an address (with or without an IPv6 zone) belongs to the public internet."""
    ip = ipaddress.ip_address(address.split("%", maxsplit=1)[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped:
            ip = ip.ipv4_mapped
        elif ip not in GLOBAL_UNICAST_V6:
            return False
    return ip.is_global and not ip.is_multicast and not any(ip.version == network.version and ip in network for network in RESERVED)


def origin_of(url: str) -> Origin | None:
    """Scheme, host and port of an http(s) URL, read by the parser that the connection uses; None: not such a URL."""
    try:
        parsed = parse_url(url)
    except LocationParseError:
        return None
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        return None
    return parsed.scheme, _plain(parsed.host), parsed.port or (443 if parsed.scheme == "https" else 80)


def shown_url(url: str) -> str:
    """A URL as messages and logs may name it: no user, password, query or fragment, for these carry signatures and tokens."""
    origin = origin_of(url)
    if origin is None:
        return f"{url.partition(':')[0][:20]}:…"
    netloc, path = parse_url(url).netloc or "", parse_url(url).path or "/"
    return f"{origin[0]}://{netloc}{path}"[:200]


class HostPolicy:
    """The allow-list: public addresses, one trusted origin, and what SAM2_MEDIA_ALLOW_HOSTS names.

    Args:
        allow_hosts: Hosts, host:port pairs and networks, comma-separated.
        trusted_url: Label Studio's address, or empty: always allowed, though private.

    Raises:
        SettingsError: an entry of the list is none of these.
    """

    def __init__(self, allow_hosts: str = "", trusted_url: str = "") -> None:
        self._trusted_origin = origin_of(trusted_url) if trusted_url else None
        self._hosts: set[str] = set()
        self._networks: list[Network] = []
        for entry in filter(None, (part.strip() for part in allow_hosts.split(","))):
            self._add(entry)

    def _add(self, entry: str) -> None:
        try:
            self._networks.append(ipaddress.ip_network(entry.strip("[]"), strict=False))
            return
        except ValueError:
            pass
        origin = origin_of(f"http://{entry}")
        if origin is None or "/" in entry or "@" in entry:
            raise SettingsError(f"SAM2_MEDIA_ALLOW_HOSTS: {entry!r} is neither a host, a host:port nor a network such as 10.0.0.0/8.")
        has_port = entry.rpartition(":")[2].isdigit() and not entry.endswith("]")
        self._hosts.add(f"{origin[1]}:{origin[2]}" if has_port else origin[1])

    def addresses(self, scheme: str, host: str, port: int, timeout_s: float) -> list[str]:
        """Resolve a host to the addresses that may be connected to, in the resolver's order.

        Raises:
            MediaRefusedError: it has none.
            MediaUnreachableError: the name does not resolve, or not in time.
        """
        host = _plain(host)
        found = resolve(host, port, timeout_s)
        if (scheme, host, port) == self._trusted_origin or host in self._hosts or f"{host}:{port}" in self._hosts:
            return found
        allowed = [address for address in found if is_public(address) or self._is_listed(address)]
        if not allowed:
            raise MediaRefusedError(
                f"{host}:{port} is on a private or reserved network, and images are not fetched from there. "
                "If it is meant to be, add it to SAM2_MEDIA_ALLOW_HOSTS."
            )
        return allowed

    def _is_listed(self, address: str) -> bool:
        ip = ipaddress.ip_address(address.split("%", maxsplit=1)[0])
        return any(ip.version == network.version and ip in network for network in self._networks)


def resolve(host: str, port: int, timeout_s: float) -> list[str]:
    """The addresses of a host, in the resolver's order; in a thread, because `getaddrinfo` has no timeout."""
    answers: queue.SimpleQueue[list[str] | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            answers.put(list(dict.fromkeys(str(info[4][0]) for info in infos)))
        except Exception as error:
            answers.put(error)

    if _is_literal(host):
        ask()
    else:
        threading.Thread(target=ask, name="media-dns", daemon=True).start()
    try:
        answer = answers.get(timeout=timeout_s)
    except queue.Empty:
        raise MediaUnreachableError(f"The name {host} was not resolved within {timeout_s:.0f} s. Check the DNS of this machine.") from None
    if isinstance(answer, Exception) or not answer:
        raise MediaUnreachableError(f"The host {host} is not known here. Check the address, or the DNS of this machine.") from None
    return answer


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host.split("%", maxsplit=1)[0])
    except ValueError:
        return False
    return True


def _plain(host: str) -> str:
    return host.lower().strip("[]").rstrip(".")
