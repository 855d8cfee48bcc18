"""The thread that deletes finished runs whose retention is over."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from pgworkflows.backoff import Backoff
from pgworkflows.database import Database
from pgworkflows.pruning import prune
from pgworkflows.store import Store

PRUNE_EVERY_S = 60.0


class Janitor(threading.Thread):
    """Prunes once a minute, on a connection that it has for that long. Blocks in statements and between them; ends when
    it is closed, after the batch that it is at. Several workers may prune at once: they skip what is locked."""

    def __init__(
        self, store: Store, conninfo: str, wanted: Callable[[], bool], logger: logging.Logger, name: str
    ) -> None:
        """`wanted` tells whether any workflow has a retention."""
        super().__init__(name=f"{name}-janitor", daemon=True)
        self._store = store
        self._conninfo = conninfo
        self._wanted = wanted
        self._logger = logger
        self._closing = threading.Event()

    def stop(self) -> None:
        """Begin no further batch."""
        self._closing.set()

    def close(self) -> None:
        self.stop()
        self.join(5.0)

    def run(self) -> None:
        backoff = Backoff(self._logger, "deleting finished runs", longest_s=PRUNE_EVERY_S)
        pause_s = PRUNE_EVERY_S / 60
        while not self._closing.wait(pause_s):
            pause_s = PRUNE_EVERY_S
            if not self._wanted():
                continue
            try:
                deleted = self._prune()
            except Exception as error:  # whatever it is, it must not end the thread
                pause_s = backoff.failed(error)
            else:
                backoff.succeeded()
                if deleted:
                    self._logger.info("pgworkflows: finished runs deleted after their retention: %d", deleted)

    def _prune(self) -> int:
        database = Database(self._conninfo, None)
        deleted = 0
        try:
            for count in prune(self._store, database, None):
                deleted += count
                if self._closing.is_set():
                    break
        finally:
            database.close()
        return deleted
