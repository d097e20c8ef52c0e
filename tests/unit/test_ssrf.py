"""Which addresses may be fetched from. Names are resolved by a fake, so nothing leaves the process."""

from __future__ import annotations

import ipaddress
import socket
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from urllib3 import Timeout

from sam2_backend import guarded_pool
from sam2_backend.errors import MediaRefusedError, MediaUnreachableError, SettingsError
from sam2_backend.ssrf import HostPolicy, is_public, origin_of, resolve

PRIVATE = [
    "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254", "100.64.0.1",
    "100.100.100.200", "192.0.0.192", "198.18.0.1", "192.0.2.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
    "::1", "::", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:0:127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::a00:1",
    "2002:7f00:1::", "2001:0:7f00:1::", "2001:db8::1", "fe80::1", "fe80::1%eth0", "fd00:ec2::254", "fc00::1", "fec0::1", "ff02::1",
]  # fmt: skip
PUBLIC = ["8.8.8.8", "1.1.1.1", "172.32.0.1", "100.63.255.255", "100.128.0.1", "2606:4700:4700::1111", "::ffff:8.8.8.8"]

SPELLINGS_OF_LOOPBACK = [
    "2130706433",
    "0x7f000001",
    "017700000001",
    "127.1",
    "0x7f.1",
    "0177.0.0.1",
    "[::ffff:7f00:1]",
    "[::1]",
    "127.0.0.1.",
]


def answer_with(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> list[str]:
    """Make every name resolve to these addresses; returns the list that the asked names are put into."""
    asked: list[str] = []

    def getaddrinfo(host: str, port: int, **_: object) -> list:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


@pytest.mark.parametrize("address", PRIVATE)
def test_private_reserved_and_wrapped_addresses_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_public(address):
    assert is_public(address)


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_as_public_wrapped_in_ipv6_as_it_is_bare_or_refused(ip: ipaddress.IPv4Address):
    assert is_public(f"::ffff:{ip}") == is_public(str(ip))
    packed = int(ip)
    assert not is_public(str(ipaddress.IPv6Address((0x2002 << 112) | (packed << 80))))
    assert not is_public(str(ipaddress.IPv6Address((0x0064FF9B << 96) | packed)))


@given(st.ip_addresses())
def test_nothing_that_python_calls_private_is_public(ip):
    if not ip.is_global or ip.is_multicast or ip.is_loopback or ip.is_link_local:
        mapped = getattr(ip, "ipv4_mapped", None)
        assert not is_public(str(ip)) or (mapped is not None and mapped.is_global)


@pytest.mark.parametrize("spelling", SPELLINGS_OF_LOOPBACK)
def test_every_spelling_of_loopback_is_refused(spelling):
    with pytest.raises(MediaRefusedError, match="SAM2_MEDIA_ALLOW_HOSTS"):
        HostPolicy().addresses("http", spelling, 80, 5)


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST", "localhost.", "ip6-localhost", "metadata.google.internal", "rebind.example"])
def test_a_name_that_resolves_to_private_addresses_is_refused_and_named(monkeypatch, name):
    answer_with(monkeypatch, "127.0.0.1", "169.254.169.254")
    with pytest.raises(MediaRefusedError, match=name.lower().rstrip(".") + ":80"):
        HostPolicy().addresses("http", name, 80, 5)


def test_of_mixed_answers_only_the_public_ones_are_given_out(monkeypatch):
    answer_with(monkeypatch, "10.0.0.1", "8.8.8.8", "::1", "1.1.1.1")
    assert HostPolicy().addresses("http", "mixed.example", 80, 5) == ["8.8.8.8", "1.1.1.1"]


@pytest.mark.parametrize("entry", ["minio", "MINIO", "minio:9000", "10.0.0.0/8", "other, minio", "10.0.0.5"])
def test_a_listed_host_or_network_is_allowed(monkeypatch, entry):
    answer_with(monkeypatch, "10.0.0.5")
    assert HostPolicy(entry).addresses("http", "minio", 9000, 5) == ["10.0.0.5"]


@pytest.mark.parametrize("entry", ["minio:9001", "10.1.0.0/16", "minio.example", "fd00::/8"])
def test_an_entry_for_another_port_network_or_name_does_not_help(monkeypatch, entry):
    answer_with(monkeypatch, "10.0.0.5")
    with pytest.raises(MediaRefusedError):
        HostPolicy(entry).addresses("http", "minio", 9000, 5)


def test_ipv6_entries_may_be_bare_bracketed_or_with_a_port(monkeypatch):
    answer_with(monkeypatch, "::1")
    for entry in ("::1", "[::1]", "[::1]:9000", "::/0"):
        assert HostPolicy(entry).addresses("http", "[::1]", 9000, 5) == ["::1"]
    with pytest.raises(MediaRefusedError):
        HostPolicy("[::1]:9001").addresses("http", "[::1]", 9000, 5)


@pytest.mark.parametrize("entry", ["http://minio:9000", "minio/bucket", "user@minio", "10.0.0.0/99", "a b"])
def test_a_malformed_entry_stops_the_start(entry):
    with pytest.raises(SettingsError, match="SAM2_MEDIA_ALLOW_HOSTS"):
        HostPolicy(entry)


@pytest.mark.parametrize(
    ("scheme", "host", "port", "is_allowed"),
    [
        ("http", "ls", 8080, True),
        ("http", "LS.", 8080, True),
        ("https", "ls", 8080, False),
        ("http", "ls", 80, False),
        ("http", "ls2", 8080, False),
    ],
)
def test_label_studio_is_trusted_by_scheme_host_and_port_together(monkeypatch, scheme, host, port, is_allowed):
    answer_with(monkeypatch, "192.168.0.7")
    policy = HostPolicy(trusted_url="http://ls:8080/sub/path")
    if is_allowed:
        assert policy.addresses(scheme, host, port, 5) == ["192.168.0.7"]
    else:
        with pytest.raises(MediaRefusedError):
            policy.addresses(scheme, host, port, 5)


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "..", "nul\0l"])
def test_a_name_that_cannot_be_resolved_is_unreachable(monkeypatch, host):
    def fail(*_: object, **__: object) -> list:
        raise UnicodeError("label too long")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(MediaUnreachableError, match="not known"):
        resolve(host, 80, 5)


def test_a_resolver_that_hangs_is_left_after_the_time_given(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(2) or [])
    began = time.monotonic()
    with pytest.raises(MediaUnreachableError, match="DNS"):
        resolve("slow.example", 80, 0.05)
    assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("http://Host/x", ("http", "host", 80)),
        ("https://host:8443", ("https", "host", 8443)),
        ("http://user:pw@host/x", ("http", "host", 80)),
        ("http://evil\\@host/", ("http", "evil", 80)),
        ("http://[::1]:81/", ("http", "::1", 81)),
        ("ftp://host/", None),
        ("host/path", None),
        ("http:///path", None),
        ("http://[bad/", None),
    ],
)
def test_an_origin_is_read_as_the_connection_reads_it(url, origin):
    assert origin_of(url) == origin


def test_the_connection_goes_to_the_checked_address_and_the_name_is_asked_once(monkeypatch):
    """A name that turns private after the check (DNS rebinding) gains nothing."""
    asked = answer_with(monkeypatch, "8.8.8.8")
    tried: list[str] = []

    def create_connection(address: tuple[str, int], *_: object, **__: object) -> None:
        tried.append(address[0])
        answer_with(monkeypatch, "127.0.0.1")
        raise ConnectionRefusedError

    monkeypatch.setattr(guarded_pool, "create_connection", create_connection)
    pool = guarded_pool.guarded_pool_manager(HostPolicy())
    with pytest.raises(Exception, match="rebind"):
        pool.request("GET", "http://rebind.example/x", timeout=Timeout(total=5))
    assert (asked, tried) == (["rebind.example"], ["8.8.8.8"])


def test_every_address_of_a_host_gets_its_share_of_the_time(monkeypatch):
    answer_with(monkeypatch, "8.8.8.8", "1.1.1.1")
    shares: list[float] = []

    def create_connection(_: tuple[str, int], timeout_s: float, **__: object) -> None:
        shares.append(timeout_s)
        raise TimeoutError

    monkeypatch.setattr(guarded_pool, "create_connection", create_connection)
    with pytest.raises(Exception, match="timed out"):
        guarded_pool.guarded_pool_manager(HostPolicy()).request("GET", "http://two.example/x", timeout=Timeout(total=4))
    assert shares == pytest.approx([2, 4], abs=0.2)
