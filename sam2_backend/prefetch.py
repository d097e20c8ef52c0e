"""Items made ahead in a thread: a bounded number, and a thread that always ends with its consumer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")

THREAD_NAME = "prefetch"


class _End:
    """Stands at the end of the items, with the error that ended them, if one did."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def prefetched(start: Callable[[], Iterator[T]], n_ahead: int) -> Generator[T, None, None]:
    """The items of `start()`, which runs in a thread from the first `next` on.

    At most `n_ahead` items wait, beside the one that the consumer holds and the one being made. When the generator ends, is closed or
    is collected, the thread finishes the item it is at and is waited for; the iterator is closed in that thread.

    Raises:
        Whatever the iterator raises, after the items before it.
    """
    items: SimpleQueue[T | _End] = SimpleQueue()
    room = threading.Semaphore(n_ahead)
    stopped = threading.Event()

    def produce() -> None:
        error: BaseException | None = None
        iterator = iter(())  # type: Iterator[T]
        try:
            iterator = start()
            for item in iterator:
                room.acquire()
                if stopped.is_set():
                    break
                items.put(item)
                del item  # while the next one is made, only the consumer holds this one
        except BaseException as raised:
            error = raised
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()
            items.put(_End(error))

    thread = threading.Thread(target=produce, name=THREAD_NAME, daemon=True)
    thread.start()
    try:
        while not isinstance(item := items.get(), _End):
            room.release()
            yield item
            del item
        if item.error is not None:
            raise item.error
    finally:
        stopped.set()
        room.release()
        thread.join()
