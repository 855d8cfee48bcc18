"""What a fork does to workers: their threads stay in the process that forks, and the child begins without them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class Forked:
    """A worker whose process may be forked."""

    stays: Callable[[], None]
    """Called in the process that has forked: the worker's threads are here."""
    begins_anew: Callable[[], None]
    """Called in the child, where it has no threads."""


_at_work: list[Forked] = []


def enter(worker: Forked) -> None:
    """From now on the worker is told of forks."""
    _at_work.append(worker)


def leave(worker: Forked) -> None:
    """The worker has ended."""
    if worker in _at_work:
        _at_work.remove(worker)


def _in_the_parent() -> None:
    # Servers that fork their processes do so in the main thread. A step that forks knows what it does.
    if threading.current_thread() is threading.main_thread():
        for worker in tuple(_at_work):
            worker.stays()


def _in_the_child() -> None:
    for worker in tuple(_at_work):
        worker.begins_anew()
    _at_work.clear()


os.register_at_fork(after_in_parent=_in_the_parent, after_in_child=_in_the_child)
