"""Runs what reads and writes bytes on a few threads of our own."""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from typing import TypeAlias, TypeVar

import torch

Task = TypeVar("Task")
Progress: TypeAlias = Callable[[int, int], object]
"""Told the number of bytes that were written since the last call, and how many there are in all."""


_THREADS = 3
"""They wait for the disk as much as they compute: measured, three are faster than two and than four on two cores."""


def ignore_progress(size: int, total: int) -> None:
    """Take note of nothing."""


def run_on_threads(
    tasks: Sequence[Task], execute: Callable[[Task, Callable[[int], object]], object], progress: Progress, total: int
) -> None:
    """Execute the tasks on threads; the first exception, Ctrl-C too, stops the others at their next run of bytes.

    Args:
        tasks: The tasks.
        execute: Does one, and tells of the bytes that it has done.
        progress: Told of them, too.
        total: Bytes of all tasks.
    """
    pending: queue.SimpleQueue[Task] = queue.SimpleQueue()
    for task in tasks:
        pending.put(task)
    stop = threading.Event()

    def advance(size: int) -> None:
        if stop.is_set():
            raise CancelledError
        progress(size, total)

    def work() -> None:
        try:
            while not stop.is_set():
                execute(pending.get_nowait(), advance)
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


@contextlib.contextmanager
def single_torch_thread() -> Iterator[None]:
    """Merging is bound by memory, and runs on our own threads: torch's would only get in their way."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
