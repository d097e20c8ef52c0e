"""A TCP proxy on loopback that fails as networks do: cut at once, cut in the middle of a reply, or alive and silent."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress

_CHUNK = 1 << 16
_RESET = struct.pack("ii", 1, 0)


class LooseCable:
    """Forwards a port of its own to another one, from `start` to `stop`."""

    def __init__(self, to_port: int) -> None:
        self._to_port = to_port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cable", daemon=True)
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: asyncio.Event | None = None
        self._halves_left = 0
        self.port = 0

    def start(self) -> None:
        self._thread.start()
        self._run(self._listen())

    def stop(self) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self) -> None:
        """Reset every connection; new ones are accepted at once."""
        self._run(self._reset_all())

    def cut_replies_in_half(self, count: int) -> None:
        """Of the next replies so many arrive by half, and then the connection is reset."""
        self._halves_left = count

    def go_silent(self) -> None:
        """Nothing passes any more; connections stay open, new ones are accepted."""
        self._run(self._set_open(is_open=False))

    def speak(self) -> None:
        """What was silent goes on, with all that was sent meanwhile."""
        self._run(self._set_open(is_open=True))

    def _run(self, work: Awaitable[None]) -> None:
        asyncio.run_coroutine_threadsafe(_awaited(work), self._loop).result(20)

    async def _listen(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _set_open(self, *, is_open: bool) -> None:
        assert self._open is not None
        (self._open.set if is_open else self._open.clear)()

    async def _reset_all(self) -> None:
        for writer in list(self._writers):
            _reset(writer)

    async def _close(self) -> None:
        self._server.close()
        await self._reset_all()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._carry(reader, writer)
        except (OSError, asyncio.CancelledError):
            _reset(writer)
        finally:
            self._tasks.discard(task)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._to_port)
        self._writers |= {writer, far_writer}
        try:
            await asyncio.gather(self._pump(reader, far_writer, lambda _data: False), self._pump(far_reader, writer, self._is_to_be_halved))
        finally:
            self._writers -= {writer, far_writer}
            for end in (writer, far_writer):
                end.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, halves: Callable[[bytes], bool]) -> None:
        assert self._open is not None
        while data := await reader.read(_CHUNK):
            await self._open.wait()
            if halves(data):
                writer.write(data[: len(data) // 2])
                with suppress(OSError):
                    await writer.drain()
                _reset(writer)
                raise ConnectionResetError
            writer.write(data)
            await writer.drain()
        writer.close()

    def _is_to_be_halved(self, data: bytes) -> bool:
        if not self._halves_left or len(data) < 2:
            return False
        self._halves_left -= 1
        return True


async def _awaited(work: Awaitable[None]) -> None:
    await work


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST in place of FIN."""
    ends: socket.socket | None = writer.get_extra_info("socket")
    with suppress(OSError, AttributeError):
        assert ends is not None
        ends.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport = writer.transport
    transport.abort()
