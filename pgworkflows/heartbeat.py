"""The thread that shows that the worker lives, hears what is asked of its runs, and notices the death of others."""

from __future__ import annotations

import logging
import threading
import time
from uuid import UUID

from pgworkflows import claims
from pgworkflows.backoff import Backoff
from pgworkflows.holdings import Holdings
from pgworkflows.low_water import LowWater
from pgworkflows.peers import PeerWatch
from pgworkflows.worker_connection import WorkerConnection

HEARTBEAT_S = 0.5
TAKE_OVER_EVERY_S = 5.0


class Heartbeat(threading.Thread):
    """Owns a connection of its own, so that no flush and no claim delays it. Blocks in statements of a few
    milliseconds and between beats; ends when it is closed."""

    def __init__(
        self, conn: WorkerConnection, holdings: Holdings, low_water: LowWater, logger: logging.Logger, name: str
    ) -> None:
        super().__init__(name=f"{name}-heartbeat", daemon=True)
        self._conn = conn
        self._holdings = holdings
        self._low_water = low_water
        self._logger = logger
        self._watch = PeerWatch()
        self._closing = threading.Event()
        self._took_over_at = 0.0
        self._beaten_at: float | None = None

    @property
    def age_s(self) -> float | None:
        """How long ago it has beaten, None if it never has."""
        return None if self._beaten_at is None else time.monotonic() - self._beaten_at

    def close(self) -> None:
        self._closing.set()
        self.join(5.0)

    def run(self) -> None:
        # The others wait for its first sign of life after an outage.
        backoff = Backoff(self._logger, "the worker's heartbeat", longest_s=2 * HEARTBEAT_S)
        pause_s = HEARTBEAT_S
        while not self._closing.wait(pause_s):
            # In this order: a new id is not registered yet, and would look dead.
            worker_id = self._holdings.worker_id
            if not self._holdings.registered:
                pause_s = HEARTBEAT_S / 10
                continue
            try:
                self._beat(worker_id)
            except Exception as error:  # whatever it is, the heart must go on
                self._watch.interrupt()
                self._conn.close()
                pause_s = backoff.failed(error)
            else:
                backoff.succeeded()
                pause_s = HEARTBEAT_S
        self._conn.close()

    def _beat(self, worker_id: UUID) -> None:
        beat = claims.beat(self._conn, worker_id)
        if not beat.alive:
            self._holdings.die(worker_id, self._logger)
            return
        self._beaten_at = time.monotonic()
        for asked in beat.controls:
            execution = self._holdings.executions.get(asked.run_id)
            # An answer may be so old that the run was let go and claimed again.
            if execution is not None and execution.run.claim_id == asked.claim_id:
                execution.ask(asked.control)
        self._bury(beat.peers)

    def _bury(self, peers: tuple[claims.Peer, ...]) -> None:
        """Declare the dead dead, and give their runs back to the queue. Now and then also the runs of a claim that
        was committed after its worker's death."""
        now_s = time.monotonic()
        died = False
        for peer in self._watch.look(peers, now_s):
            if claims.declare_dead(self._conn, peer.worker_id, peer.beats):
                self._logger.warning("pgworkflows: worker %s is dead", peer.worker_id)
                died = True
        if died or now_s - self._took_over_at > TAKE_OVER_EVERY_S:
            self._took_over_at = now_s
            orphans = claims.take_over(self._conn)
            if orphans:
                self._logger.warning("pgworkflows: runs of dead workers go on elsewhere: %d", orphans)
                self._low_water.forget()
                self._holdings.bell.set()
