"""Runs what reads and writes bytes on a few threads of our own."""

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from typing import TypeVar

from mha2gqa.progress import Advance

Item = TypeVar("Item")

_THREADS = 3
"""They wait for the disk as much as they compute: measured, three are faster than two and than four on two cores."""


def run_on_threads(
    items: Sequence[Item], execute: Callable[[Item, Callable[[int], object]], object], advance: Advance, total: int
) -> None:
    """Execute work on threads; the first exception, Ctrl-C too, stops the others at their next run of bytes.

    Args:
        items: What is to be worked on, each by one thread.
        execute: Works on one, and tells of the bytes that it has done.
        advance: Told of them, too.
        total: Bytes of all items.
    """
    pending: queue.SimpleQueue[Item] = queue.SimpleQueue()
    for item in items:
        pending.put(item)
    stop = threading.Event()

    def tell(size: int) -> None:
        if stop.is_set():
            raise CancelledError
        advance(size, total)

    def work() -> None:
        try:
            while not stop.is_set():
                execute(pending.get_nowait(), tell)
        except (queue.Empty, CancelledError):
            pass
        except BaseException:
            stop.set()  # at once: the main thread may be slow to wake
            raise

    with ThreadPoolExecutor(_THREADS) as executor:
        futures = [executor.submit(work) for _ in range(_THREADS)]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
    for future in futures:
        future.result()
