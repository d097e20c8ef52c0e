"""Images out of data: addresses, in a real Redis: whatever anyone sends, they never take more than their budget."""

from __future__ import annotations

import pytest

from backend import blobs
from backend.dispatch import Dispatcher
from sam2_backend.queue_format import BLOB_TTL_S, blob_key, digest


@pytest.fixture
def connection(redis_server):
    with redis_server.connect() as connection:
        yield connection


@pytest.fixture
def dispatcher(settings):
    dispatcher = Dispatcher(settings)
    yield dispatcher
    dispatcher.close()


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [1_000.0]
    monkeypatch.setattr(blobs.time, "time", lambda: now[0])
    return now


def held_bytes(connection) -> int:
    return sum(connection.strlen(key) for key in connection.scan_iter("sam2:blob:*"))


def test_equal_bytes_are_kept_once_and_end_an_hour_after_their_last_use(dispatcher, connection):
    ref = dispatcher.put_blob(b"an image")
    assert ref.uri == f"blob:{digest(b'an image')}"
    connection.expire(blob_key(digest(b"an image")), 5)
    assert dispatcher.put_blob(b"an image") == ref
    assert connection.get(blob_key(digest(b"an image"))) == b"an image"
    assert connection.ttl(blob_key(digest(b"an image"))) > BLOB_TTL_S - 60
    assert connection.zcard(blobs.BLOBS) == 1
    assert 0 < connection.ttl(blobs.BLOBS) <= BLOB_TTL_S


def test_they_never_take_more_than_their_budget_and_those_unused_for_longest_go(dispatcher, connection, clock, monkeypatch):
    monkeypatch.setattr(blobs, "MOST_BYTES", 1000)
    images = [bytes([number]) * 300 for number in range(6)]
    for image in images[:3]:
        clock[0] += 1
        dispatcher.put_blob(image)
    clock[0] += 1
    dispatcher.put_blob(images[0])  # used again
    for image in images[3:5]:
        clock[0] += 1
        dispatcher.put_blob(image)
        assert held_bytes(connection) <= 1000
    assert [connection.exists(blob_key(digest(image))) for image in images] == [1, 0, 0, 1, 1, 0]
    assert connection.zcard(blobs.BLOBS) == 3


def test_there_are_never_more_than_so_many(dispatcher, connection, clock, monkeypatch):
    monkeypatch.setattr(blobs, "MOST_BLOBS", 5)
    for number in range(20):
        clock[0] += 1
        dispatcher.put_blob(b"%d" % number)
        assert len(list(connection.scan_iter("sam2:blob:*"))) <= 5
    assert connection.get(blob_key(digest(b"19"))) == b"19"


def test_what_has_ended_takes_no_room(dispatcher, connection, clock, monkeypatch):
    monkeypatch.setattr(blobs, "MOST_BYTES", 1000)
    dispatcher.put_blob(bytes(900))
    connection.delete(blob_key(digest(bytes(900))))  # as Redis does after the hour
    clock[0] += BLOB_TTL_S + 1
    dispatcher.put_blob(b"x" * 900)
    assert connection.zrange(blobs.BLOBS, 0, -1) == [f"900:{digest(b'x' * 900)}".encode()]


def test_one_image_larger_than_the_budget_is_kept_alone(dispatcher, connection, monkeypatch):
    """Its size has a limit of its own (SAM2_MEDIA_MAX_BYTES)."""
    monkeypatch.setattr(blobs, "MOST_BYTES", 1000)
    dispatcher.put_blob(bytes(100))
    ref = dispatcher.put_blob(bytes(2000))
    assert connection.strlen(blob_key(ref.uri.partition(":")[2])) == 2000
    assert len(list(connection.scan_iter("sam2:blob:*"))) == 1
