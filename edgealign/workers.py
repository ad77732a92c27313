"""Worker processes that neither outlive the command that started them nor leave it waiting."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from edgealign.errors import EdgealignError


def end_with_parent() -> None:
    """Called in a worker: it ends when the process that started it is killed, and would wait for more work for ever."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def results(
    work: Callable[[Any], Any], tasks: Iterable[Any], workers: int, start: Callable[..., None], arguments: tuple
) -> Iterator[Any]:
    """What `work` gives for each task, in the order in which it is done, by so many processes.

    start   called with `arguments` when a process begins

    EdgealignError where a process dies: an executor tells, where a multiprocessing.Pool would wait for ever.
    """
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(workers, context, _begin, (start, arguments)) as pool:
            for future in as_completed([pool.submit(work, task) for task in tasks]):
                yield future.result()
    except BrokenProcessPool:
        raise EdgealignError(
            "a worker process ended in the middle of its work: it was killed, or a library crashed; the same line goes "
            "on where it stopped"
        ) from None


def _begin(start: Callable[..., None], arguments: tuple) -> None:
    end_with_parent()
    start(*arguments)


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
