"""A server of as many different images as are asked for, cheap enough to share the cores with what is measured."""

from __future__ import annotations

import asyncio
import io
import re

import numpy as np
from PIL import Image

_N_PICTURES = 8


def pictures(size_wh: tuple[int, int]) -> list[bytes]:
    """JPEGs with structure at several scales."""
    found = []
    for seed in range(_N_PICTURES):
        rng = np.random.default_rng(seed)
        total = np.zeros((size_wh[1], size_wh[0], 3), np.float32)
        for cells in (4, 16, 64):
            coarse = rng.uniform(0, 255, (cells, cells, 3)).astype(np.uint8)
            total += np.asarray(Image.fromarray(coarse).resize(size_wh, Image.Resampling.BICUBIC), np.float32) / np.sqrt(cells)
        buffer = io.BytesIO()
        Image.fromarray((255 * (total - total.min()) / np.ptp(total)).astype(np.uint8)).save(buffer, "JPEG", quality=85)
        found.append(buffer.getvalue())
    return found


async def serve_images(size_wh: tuple[int, int]) -> tuple[asyncio.Server, str]:
    """(server, address): /N.jpg is one of a few pictures with a comment of its own in it, so its bytes are like no other's."""
    made = pictures(size_wh)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        match = re.match(rb"GET /(\d+)\.jpg", request)
        number = int(match[1]) if match else 0
        comment = b"\xff\xfe\x00\x0a%08d" % number
        jpeg = made[number % len(made)]
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nConnection: close\r\n")
        writer.write(b"Content-Length: %d\r\n\r\n" % (len(jpeg) + len(comment)))
        writer.writelines([jpeg[:2], comment, jpeg[2:]])
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    return server, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
