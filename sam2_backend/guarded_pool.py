"""An HTTP client that connects only to addresses that the policy gave it, and keeps a total deadline.

Every connection, a redirect's as well, resolves its host once through the policy and goes to the address that was checked. urllib3's
own timeouts start anew with every received byte; here reading stops at a moment. Environment proxies are not used.
"""

from __future__ import annotations

import functools
import http.client
import io
import socket
import ssl
import time
from typing import Any

import certifi
from urllib3 import HTTPResponse, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError
from urllib3.util import create_urllib3_context
from urllib3.util.connection import create_connection

from sam2_backend.ssrf import HostPolicy


class _DeadlineReader(io.RawIOBase):
    """A socket's reading end that gives up at a moment, however steadily bytes drip."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, ends_at: float) -> None:
        super().__init__()
        self._raw, self._sock, self._ends_at = raw, sock, ends_at

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        remaining_s = self._ends_at - time.monotonic()
        if remaining_s <= 0:
            raise TimeoutError("timed out")
        self._sock.settimeout(remaining_s)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _DeadlineResponse(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, ends_at: float, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_DeadlineReader(self.fp.detach(), sock, ends_at))


class _GuardedConnection(HTTPConnection):
    policy: HostPolicy
    scheme: str

    def _new_conn(self) -> socket.socket:
        ends_at = time.monotonic() + (self.timeout or 0)
        addresses = self.policy.addresses(self.scheme, self._dns_host, self.port, self.timeout or 0)
        failure: OSError | None = None
        for n_tried, address in enumerate(addresses):
            # A share for each address: a dead IPv6 route must not use up the time of the IPv4 address behind it.
            share_s = max(ends_at - time.monotonic(), 0.001) / (len(addresses) - n_tried)
            try:
                return create_connection((address, self.port), share_s, socket_options=self.socket_options)
            except OSError as error:
                failure = error
        if isinstance(failure, TimeoutError):
            raise ConnectTimeoutError(self, "timed out") from failure
        raise NewConnectionError(self, str(failure)) from failure

    def getresponse(self) -> HTTPResponse:  # type: ignore[override]
        # urllib3 has put what is left of the request's total time into `timeout`.
        self.response_class = functools.partial(_DeadlineResponse, ends_at=time.monotonic() + (self.timeout or 0))  # type: ignore[assignment]
        return super().getresponse()


def guarded_pool_manager(policy: HostPolicy, connections_per_host: int = 8) -> PoolManager:
    """A thread-safe, keep-alive HTTP client that connects only to where the policy allows.

    Give every request `timeout=urllib3.Timeout(total=…)`: the total then bounds connecting, headers and body together. The
    policy's errors come out as they are. Certificates: the system's (and SSL_CERT_FILE's) as well as those of certifi.
    """
    pools: dict[str, type[HTTPConnectionPool]] = {}
    for scheme, base, pool in (("http", HTTPConnection, HTTPConnectionPool), ("https", HTTPSConnection, HTTPSConnectionPool)):
        connection = type("GuardedConnection", (_GuardedConnection, base), {"policy": policy, "scheme": scheme})
        pools[scheme] = type("GuardedPool", (pool,), {"ConnectionCls": connection})
    manager = PoolManager(maxsize=connections_per_host, ssl_context=_tls_context(), retries=False)
    manager.pool_classes_by_scheme = pools
    return manager


@functools.cache
def _tls_context() -> ssl.SSLContext:
    context = create_urllib3_context()
    context.load_default_certs()
    context.load_verify_locations(certifi.where())
    return context
