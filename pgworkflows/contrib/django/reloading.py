"""Autoreload in development: a worker in a process that is begun anew when the code changes.

As with `runserver` there are two processes. The outer one only waits; the inner one works in its main thread, where
signals end it gracefully, and watches the files in another. When one changes it ends its steps and exits with 3.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from django.utils import autoreload

CHANGED = 3
EVERY_S = 1.0

logger = logging.getLogger("pgworkflows")


def run_with_reloading(work: Callable[[], None], stop: Callable[[], None]) -> None:
    """Call `work` in a process that is begun anew whenever a file changes; `stop` lets `work` return. Exits with the
    status that the last of these processes has."""
    if os.environ.get(autoreload.DJANGO_AUTORELOAD_ENV) != "true":
        sys.exit(_supervise())
    files = _Files()

    def watch() -> None:
        while not files.have_changed():
            time.sleep(EVERY_S)
        stop()

    threading.Thread(target=watch, name="pgworkflows-reloader", daemon=True).start()
    work()
    if files.changed:
        sys.exit(CHANGED)


class _Files:
    """The files of all modules that are imported, as they are when they are first seen."""

    def __init__(self) -> None:
        self._files = autoreload.StatReloader()
        self._seen = dict(self._files.snapshot_files())
        self.changed = False

    def have_changed(self) -> bool:
        """Whether one of them is another now."""
        self.changed = any(time != self._seen.setdefault(path, time) for path, time in self._files.snapshot_files())
        return self.changed


def _supervise() -> int:
    """Run the inner process again and again: its last status."""
    ended = threading.Event()
    current: subprocess.Popen[bytes] | None = None

    def end(number: int, _frame: object) -> None:
        ended.set()
        if current is not None and number == signal.SIGTERM:  # the other a terminal sends to both
            current.send_signal(number)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    environment = {**os.environ, autoreload.DJANGO_AUTORELOAD_ENV: "true"}
    while not ended.is_set():
        files = _Files()
        current = subprocess.Popen(autoreload.get_child_arguments(), env=environment, close_fds=False)
        status = current.wait()
        if status == CHANGED:
            continue
        if status <= 0 or ended.is_set():
            return status
        # Code that cannot even be imported, or a database without the tables.
        logger.warning("pgworkflows: the worker has ended with status %d; waiting for a file to change", status)
        while not ended.is_set() and not files.have_changed():
            time.sleep(EVERY_S)
    return 0
