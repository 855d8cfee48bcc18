"""Who is dead: what one uninterrupted series of looks at the other workers says. Pure; time is an input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from pgworkflows.claims import Peer

SILENCE_S = 1.5
LONGEST_GAP_S = 1.5
PATIENCE_S = 15.0
"""How long after an outage nobody is dead: the others may still be on their way back to the server."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """`missed_s`: how long it was waited for patiently, over all outages, and neither beat nor had its lock."""

    beats: int
    since: float
    unlocked_since: float | None
    missed_s: float


class PeerWatch:
    """Remembers the heartbeats and locks of the other workers.

    A worker with a lock is dead when the lock is free and no heartbeat came for `SILENCE_S` of uninterrupted watching
    (its process is gone), or when no heartbeat came for its whole lease (its host is gone, or it stands still). A
    pause of the whole server, or of this process, is an interruption, and begins the watch anew. A worker without a
    lock is dead when its lease has run out by the database's clock; when the server comes back after a pause, that is
    so for everybody, hence it must have been silent for `SILENCE_S` too. A session that was lost may have been lost by
    all, in a failover; whoever is back first waits for the others for `PATIENCE_S`. While sessions are lost again and
    again, it waits for nobody whom it has missed for so long in sum.
    """

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}
        self._last_look: float | None = None
        self._interrupted = False
        self._patient_until = 0.0

    def interrupt(self) -> None:
        """Begin anew, and patiently: the session that looked was lost."""
        self._last_look = None
        self._interrupted = True

    def look(self, peers: Sequence[Peer], now_s: float) -> list[Peer]:
        """Take in one look, at the monotonic time `now_s`, and return the peers that are dead by now."""
        gap_s = inf if self._last_look is None else now_s - self._last_look
        self._last_look = now_s
        if self._interrupted:
            self._interrupted = False
            self._patient_until = now_s + PATIENCE_S
        self._seen = {peer.worker_id: self._updated(peer, now_s, gap_s) for peer in peers}
        return [peer for peer in peers if self._is_dead(peer, self._seen[peer.worker_id], now_s)]

    def _updated(self, peer: Peer, now_s: float, gap_s: float) -> _Seen:
        seen = self._seen.get(peer.worker_id)
        unlocked_since = None if peer.locked else now_s
        if seen is None or seen.beats != peer.beats:
            return _Seen(peer.beats, now_s, unlocked_since, 0.0)
        patient = now_s < self._patient_until
        missed_s = seen.missed_s if patient and not peer.locked else 0.0
        if gap_s > LONGEST_GAP_S:
            return _Seen(peer.beats, now_s, unlocked_since, missed_s)
        if seen.unlocked_since is not None and not peer.locked:
            unlocked_since = seen.unlocked_since
            missed_s += gap_s if patient else 0.0
        return _Seen(peer.beats, seen.since, unlocked_since, missed_s)

    def _is_dead(self, peer: Peer, seen: _Seen, now_s: float) -> bool:
        if now_s < self._patient_until and seen.missed_s < PATIENCE_S:
            return False
        if not peer.has_lock:
            return peer.lapsed and now_s - seen.since >= SILENCE_S
        if seen.unlocked_since is not None and now_s - seen.unlocked_since >= SILENCE_S:
            return True
        return now_s - seen.since >= peer.lease_s
