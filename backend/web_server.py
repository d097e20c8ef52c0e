"""What gunicorn is told beyond its command line: `--config python:backend.web_server`."""

from __future__ import annotations

import logging
import socket
import struct
from typing import Any

SILENCE_S = 15
"""A caller that sends nothing, or takes nothing, for this long in the middle of a request loses its connection, and its thread is free."""


def when_ready(server: Any) -> None:
    """Called by gunicorn before the first connection; connections inherit the limits from the socket that listens."""
    limit = struct.pack("ll", SILENCE_S, 0)
    for listener in server.LISTENERS:
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            listener.sock.setsockopt(socket.SOL_SOCKET, option, limit)
    server.log.error_log.addFilter(_in_words)


def _in_words(record: logging.LogRecord) -> bool:
    """A connection that was cut for its silence is one line, not a traceback."""
    if record.exc_info and isinstance(record.exc_info[1], BlockingIOError):
        record.msg, record.args, record.exc_info = (
            f"A caller was silent for {SILENCE_S} s within a request: its connection was cut.",
            (),
            None,
        )
    return True
