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
from typing import Any

from django.utils import autoreload

CHANGED = 3

logger = logging.getLogger("pgworkflows")


def run_with_reloading(work: Callable[[], None], stop: Callable[[], None]) -> None:
    """Call `work` in a process that is begun anew whenever a file changes; `stop` lets `work` return. Exits with the
    status that the last of these processes has."""
    if os.environ.get(autoreload.DJANGO_AUTORELOAD_ENV) != "true":
        sys.exit(_supervise())
    changed = threading.Event()

    def on_change(**_more: Any) -> bool:
        changed.set()
        stop()
        return True  # or else Django would end this thread, and nothing else

    autoreload.file_changed.connect(on_change)
    reloader = autoreload.get_reloader()
    watcher = threading.Thread(
        target=reloader.run, args=(threading.main_thread(),), name="pgworkflows-reloader", daemon=True
    )
    watcher.start()
    work()
    if changed.is_set():
        sys.exit(CHANGED)


def _supervise() -> int:
    """Run the inner process again and again: its last status."""
    terminated = threading.Event()
    current: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, _frame: object) -> None:
        terminated.set()
        if current is not None and number == signal.SIGTERM:  # the other a terminal sends to both
            current.send_signal(number)

    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGINT, pass_on)
    files = autoreload.StatReloader()
    while True:
        seen = dict(files.snapshot_files())
        environment = {**os.environ, autoreload.DJANGO_AUTORELOAD_ENV: "true"}
        current = subprocess.Popen(autoreload.get_child_arguments(), env=environment, close_fds=False)
        status = current.wait()
        if status != CHANGED and (status <= 0 or terminated.is_set()):
            return status
        if status != CHANGED:
            # Code that cannot even be imported, or a database without the tables.
            logger.warning("pgworkflows: the worker has ended with status %d; waiting for a file to change", status)
        while status != CHANGED and dict(files.snapshot_files()) == seen and not terminated.is_set():
            time.sleep(files.SLEEP_TIME)
        if terminated.is_set():
            return 0
