"""A Redis with a password behind TLS: the server of the tests, with a door in front of it that speaks TLS, for not every build of it does."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ipaddress
import ssl
import subprocess
import threading
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Self

from backend.embedded_redis import server_arguments, server_command


def certificate(folder: Path, name: str) -> Path:
    """A key and a certificate for 127.0.0.1, signed by itself, in one file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    signed = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number(), now, now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = folder / f"{name}.pem"
    path.write_bytes(private + signed.public_bytes(serialization.Encoding.PEM))
    return path


class TlsRedis:
    """As a context manager. `close_door` is a Redis that goes away.

    Attributes:
        port: Of 127.0.0.1; TLS alone is understood there.
        ca: The certificate to trust.
    """

    def __init__(self, folder: Path, password: str) -> None:
        self.ca, self._socket, self._config = certificate(folder, "redis"), folder / "redis.sock", folder / "redis.conf"
        self._config.write_text(f"requirepass {password}\n")
        self._config.chmod(0o600)
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(self.ca)
        self._loop = asyncio.new_event_loop()
        self._ends: set[asyncio.StreamWriter] = set()
        self.port = 0

    def __enter__(self) -> Self:
        self._process = subprocess.Popen([*server_command(), str(self._config), *server_arguments(self._socket)], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while not self._socket.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._door = self._within(asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls))
        self.port = self._door.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self.close_door()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._process.kill()
        self._process.wait()

    def close_door(self) -> None:
        """End all connections, and let nobody in any more."""
        self._within(self._close_door())

    def _within(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    async def _close_door(self) -> None:
        self._door.close()
        for end in list(self._ends):
            end.transport.abort()
        for _ in range(200):
            if self._ends:
                await asyncio.sleep(0.02)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inside_reader, inside_writer = await asyncio.open_unix_connection(str(self._socket))
        ends = {writer, inside_writer}
        self._ends |= ends
        await asyncio.gather(_pass_on(reader, inside_writer), _pass_on(inside_reader, writer))
        self._ends -= ends


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
