"""One URL to its bytes, within a number of bytes and seconds, over connections that the policy allows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from urllib.parse import urljoin

from urllib3 import BaseHTTPResponse, Timeout
from urllib3.exceptions import DecodeError, HTTPError, NewConnectionError, ProtocolError, SSLError
from urllib3.exceptions import TimeoutError as TransferTimeoutError

from sam2_backend.credentials import OriginCredentials
from sam2_backend.errors import MediaRefusedError, MediaTooLargeError, MediaUnreachableError, MediaUnreadableError
from sam2_backend.guarded_pool import guarded_pool_manager
from sam2_backend.ssrf import HostPolicy, origin_of, shown_url

MAX_REDIRECTS = 5
REDIRECTS = frozenset({301, 302, 303, 307, 308})
CONNECT_TIMEOUT_S = 10.0
READ_BYTES = 256 << 10
SMALL_BODY_BYTES = 16 << 10
"""A redirect's own body is read up to this size, so that its connection can be used again."""
REQUEST_HEADERS = {"Accept": "image/*,*/*;q=0.8", "Accept-Encoding": "identity", "User-Agent": "sam2-backend"}


class Downloader:
    """Fetches over http and https. Safe to share between threads; connections are kept alive.

    Args:
        policy: Where connections may go; asked again for every redirect.
        credentials: Asked for headers anew for every redirect, so that no key follows one to another host.
        max_bytes: Largest body, counted after decompression, as it arrives.
        deadline_s: Longest time for everything together: names, connections, redirects, headers, body.
        kind: What is fetched, MEDIA or VIDEO: the messages name its settings.
    """

    def __init__(
        self, policy: HostPolicy, credentials: OriginCredentials, *, max_bytes: int, deadline_s: float, kind: str = "MEDIA"
    ) -> None:
        self._kind = kind
        self._credentials = credentials
        self._max_bytes = max_bytes
        self._deadline_s = deadline_s
        self._pool = guarded_pool_manager(policy)

    def download(self, url: str) -> bytes:
        """Fetch the body behind a URL, through at most `MAX_REDIRECTS` redirects.

        Raises:
            MediaError: as for `download_to`.
        """
        chunks: list[bytes] = []
        self.download_to(url, chunks.append)
        return b"".join(chunks)

    def download_to(self, url: str, write: Callable[[bytes], object]) -> None:
        """Hand the body behind a URL to `write`, piece by piece as it arrives; on an error it may have got some.

        Raises:
            MediaRefusedError: the URL, or one that it redirects to, leads to where nothing may be fetched from.
            MediaUnreachableError: no answer in time, an error answer, a body that breaks off.
            MediaTooLargeError: more bytes than allowed.
            MediaUnreadableError: the body's compression is damaged.
        """
        ends_at = time.monotonic() + self._deadline_s
        for _ in range(MAX_REDIRECTS + 1):
            with self._errors_named(url):
                response = self._open(url, ends_at)
                try:
                    if response.status not in REDIRECTS or "Location" not in response.headers:
                        self._check_status(response.status, url)
                        self._pass_on(response, url, write)
                        return
                    url = urljoin(url, response.headers["Location"])
                    if (_announced_bytes(response) or SMALL_BODY_BYTES) < SMALL_BODY_BYTES:
                        response.drain_conn()
                finally:
                    response.close()
        raise MediaUnreachableError(f"{shown_url(url)} is behind more than {MAX_REDIRECTS} redirects. Check the address in the task.")

    def _open(self, url: str, ends_at: float) -> BaseHTTPResponse:
        if origin_of(url) is None:
            raise MediaRefusedError(f"{shown_url(url)} is not an http or https address, and images are not fetched from others.")
        headers = REQUEST_HEADERS | self._credentials.headers_for(url)
        try:
            return self._request(url, headers, ends_at)
        except ProtocolError:
            # A server may close a kept-alive connection just as it is used again.
            return self._request(url, headers, ends_at)

    def _request(self, url: str, headers: dict[str, str], ends_at: float) -> BaseHTTPResponse:
        remaining_s = ends_at - time.monotonic()
        if remaining_s <= 0:
            raise TransferTimeoutError
        timeout = Timeout(total=remaining_s, connect=CONNECT_TIMEOUT_S)
        return self._pool.request("GET", url, headers=headers, redirect=False, timeout=timeout, preload_content=False)

    def _pass_on(self, response: BaseHTTPResponse, url: str, write: Callable[[bytes], object]) -> None:
        n_bytes = _announced_bytes(response) or 0
        self._check_size(n_bytes, url)
        n_bytes = 0
        while chunk := response.read1(READ_BYTES, decode_content=True):
            n_bytes += len(chunk)
            self._check_size(n_bytes, url)
            write(chunk)

    def _check_size(self, n_bytes: int, url: str) -> None:
        if n_bytes > self._max_bytes:
            raise MediaTooLargeError(
                f"{shown_url(url)} is larger than {self._max_bytes} bytes. Use a smaller file, or raise SAM2_{self._kind}_MAX_BYTES."
            )

    def _check_status(self, status: int, url: str) -> None:
        if status == HTTPStatus.OK:
            return
        answered = f"{shown_url(url)} answered {status}"
        if status not in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            raise MediaUnreachableError(f"{answered}. Check that the image is still there.")
        if not self._credentials.is_trusted(url):
            raise MediaUnreachableError(f"{answered}: it needs a login, or its signature has expired. Check the storage's settings.")
        if not self._credentials.has_key:
            raise MediaUnreachableError(f"{answered}: LABEL_STUDIO_API_KEY is missing. Set it to a personal access token.")
        raise MediaUnreachableError(
            f"{answered}: LABEL_STUDIO_API_KEY was refused, or its user may not see this image. "
            "Legacy tokens are off by default in Label Studio: use a personal access token."
        )

    @contextmanager
    def _errors_named(self, url: str) -> Iterator[None]:
        where = shown_url(url)
        try:
            yield
        except NewConnectionError:  # before the time-outs, which it is one of by name
            raise MediaUnreachableError(f"{where} cannot be connected to. Check the address, and that the server runs.") from None
        except TransferTimeoutError:
            raise MediaUnreachableError(
                f"{where} did not arrive in time. Check the network, or raise SAM2_{self._kind}_DEADLINE_S ({self._deadline_s:g})."
            ) from None
        except SSLError:
            raise MediaUnreachableError(
                f"{where} has no certificate that this machine trusts. Set SSL_CERT_FILE to its authority."
            ) from None
        except DecodeError:
            raise MediaUnreadableError(f"{where} sent a damaged compressed body. Upload the file again.") from None
        except ProtocolError:
            raise MediaUnreachableError(f"{where} broke off the transfer. Try again, or check the server.") from None
        except (HTTPError, ValueError):
            raise MediaUnreachableError(f"{where} cannot be fetched. Check the address in the task.") from None


def _announced_bytes(response: BaseHTTPResponse) -> int | None:
    announced = response.headers.get("Content-Length", "")
    return int(announced) if announced.isdecimal() and len(announced) < 20 else None
