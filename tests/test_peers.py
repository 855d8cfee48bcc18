"""The death-watch: who is dead, by one uninterrupted series of looks; what a busy or paused worker never is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgworkflows.claims import Peer
from pgworkflows.peers import LONGEST_GAP_S, PATIENCE_S, SILENCE_S, PeerWatch

LEASE_S = 30.0
STEP_S = 0.5


def peer(
    beats: int = 0, *, worker_id: str = "a", has_lock: bool = True, locked: bool = True, lapsed: bool = False
) -> Peer:
    return Peer(worker_id, beats, LEASE_S, has_lock, locked, lapsed)


def first_death(looks: list[Peer], *, since: float = 100.0, step_s: float = STEP_S) -> float | None:
    """After how many seconds of looking, once a step, the peer is found dead."""
    watch = PeerWatch()
    for number, look in enumerate(looks):
        if watch.look([look], since + number * step_s):
            return number * step_s
    return None


def test_a_worker_whose_process_is_gone_is_dead_after_its_silence() -> None:
    assert first_death([peer(7, locked=False)] * 10) == SILENCE_S


def test_nobody_is_dead_at_first_sight() -> None:
    assert PeerWatch().look([peer(locked=False), peer(worker_id="b", has_lock=False, lapsed=True)], 0.0) == []


def test_a_worker_that_beats_is_alive_whatever_its_lock_says() -> None:
    assert first_death([peer(beats, locked=False) for beats in range(500)]) is None


def test_a_worker_that_holds_its_lock_may_be_silent_for_its_lease() -> None:
    """A step that holds the GIL stops the heartbeat; the lock stays."""
    assert first_death([peer(7)] * 100) == LEASE_S


def test_the_silence_counts_from_when_the_lock_was_found_free() -> None:
    assert first_death([peer(7)] * 10 + [peer(7, locked=False)] * 10) == 10 * STEP_S + SILENCE_S


def test_a_lock_that_is_taken_again_ends_the_silence() -> None:
    """The listener's connection was lost, and it has connected again."""
    away = [peer(7, locked=False)] * 3
    assert first_death([*away, peer(7), *away, peer(7), *away]) is None


def test_a_beat_ends_the_silence() -> None:
    looks = [peer(beats, locked=False) for beats in (7, 7, 7, 8, 8, 8, 9, 9, 9)]
    assert first_death(looks) is None


def test_a_pause_of_the_watcher_or_of_the_server_begins_the_watch_anew() -> None:
    watch = PeerWatch()
    gone = peer(7, locked=False)
    now = 100.0
    assert watch.look([gone], now) == []
    now += LONGEST_GAP_S + 0.1
    assert watch.look([gone], now) == []
    assert watch.look([gone], now + 1.0) == []
    assert watch.look([gone], now + 1.5) == [gone]


def test_a_pause_does_not_count_against_a_lease() -> None:
    watch = PeerWatch()
    silent = peer(7)
    assert watch.look([silent], 100.0) == []
    assert watch.look([silent], 100.0 + 2 * LEASE_S) == []


def test_another_session_begins_the_watch_anew() -> None:
    watch = PeerWatch()
    gone = peer(7, locked=False)
    assert watch.look([gone], 100.0) == []
    assert watch.look([gone], 101.0) == []
    watch.interrupt()
    dead_at = [at for at in (102.0 + number * STEP_S for number in range(60)) if watch.look([gone], at)]
    assert dead_at[0] == 102.0 + PATIENCE_S


def test_after_an_outage_everybody_has_the_time_to_come_back() -> None:
    """In a failover all sessions are lost at once; one worker is back first, the others connect as they can."""
    watch = PeerWatch()
    others = [peer(7), peer(7, worker_id="b", has_lock=False, locked=False)]
    assert watch.look(others, 100.0) == []
    watch.interrupt()
    away = [peer(7, locked=False), peer(7, worker_id="b", has_lock=False, locked=False, lapsed=True)]
    back = [peer(8), peer(8, worker_id="b", has_lock=False, locked=False)]
    for number in range(60):
        assert watch.look(away if number < 28 else back, 200.0 + number * STEP_S) == []


def dead_among(looks: Callable[[int], Peer], outages: Callable[[int], bool]) -> float | None:
    """How long it was watched until it is found dead, half a second a look, with an outage before some looks."""
    watch = PeerWatch()
    for number in range(400):
        if outages(number):
            watch.interrupt()
        if watch.look([looks(number)], 100.0 + number * STEP_S):
            return number * STEP_S
    return None


@pytest.mark.parametrize("has_lock", [True, False])
@pytest.mark.parametrize("every", [5, 8, 29, 31])
def test_outages_that_come_again_and_again_do_not_keep_a_dead_worker_alive(has_lock: bool, every: int) -> None:
    """Each outage costs the look that comes after it, and the silence is watched without a gap."""
    gone = peer(7, has_lock=has_lock, locked=False, lapsed=True)
    dead_after = dead_among(lambda _: gone, lambda number: number % every == 0)
    assert dead_after is not None
    assert PATIENCE_S <= dead_after <= PATIENCE_S * every / (every - 1) + STEP_S + SILENCE_S


@pytest.mark.parametrize("sign", ["beat", "lock"])
def test_a_worker_that_shows_itself_in_time_lives_through_any_number_of_outages(sign: str) -> None:
    def shown(number: int) -> Peer:
        times, now = divmod(number, 28)
        return peer(times if sign == "beat" else 7, locked=sign == "lock" and now == 0)

    assert dead_among(shown, lambda number: number % 6 == 0) is None


def test_an_outage_long_after_another_is_waited_for_in_full() -> None:
    """A worker without a lock may be silent for its lease, through the one and into the other."""
    watch = PeerWatch()
    watch.interrupt()
    for number in range(50):
        assert watch.look([peer(7, has_lock=False, locked=False)], 100.0 + number * STEP_S) == []
    watch.interrupt()
    lapsed = peer(7, has_lock=False, locked=False, lapsed=True)
    dead_at = [at for at in (125.0 + number * STEP_S for number in range(60)) if watch.look([lapsed], at)]
    assert dead_at[0] == 125.0 + PATIENCE_S


def test_a_worker_that_was_silent_with_its_lock_is_waited_for_after_an_outage() -> None:
    """Its step held the GIL before the outage, which took its lock."""
    watch = PeerWatch()
    for number in range(50):
        assert watch.look([peer(7)], 100.0 + number * STEP_S) == []
    watch.interrupt()
    dead_at = [
        at for at in (125.0 + number * STEP_S for number in range(60)) if watch.look([peer(7, locked=False)], at)
    ]
    assert dead_at[0] == 125.0 + PATIENCE_S


def test_a_worker_without_a_lock_is_dead_when_its_lease_has_run_out() -> None:
    alive = [peer(7, has_lock=False, locked=False)] * 60
    lapsed = [peer(7, has_lock=False, locked=False, lapsed=True)] * 2
    assert first_death(alive + lapsed) == 60 * STEP_S


def test_a_worker_without_a_lock_may_beat_after_a_pause_of_the_server() -> None:
    """Every lease has run out when the server comes back; who beats now is alive."""
    lapsed = [peer(7, has_lock=False, locked=False, lapsed=True)] * 3
    assert first_death([*lapsed, *(peer(beats, has_lock=False, locked=False) for beats in range(8, 20))]) is None
    assert first_death([*lapsed, *lapsed]) == SILENCE_S


def test_peers_are_watched_one_by_one() -> None:
    watch = PeerWatch()
    dead = [
        watch.look([peer(number, worker_id="a"), peer(7, worker_id="b", locked=False)], 100.0 + number * STEP_S)
        for number in range(4)
    ]
    assert [[each.worker_id for each in found] for found in dead] == [[], [], [], ["b"]]


def test_a_peer_that_was_away_is_a_new_one() -> None:
    watch = PeerWatch()
    gone = peer(7, locked=False)
    assert watch.look([gone], 100.0) == []
    assert watch.look([], 101.0) == []
    assert watch.look([gone], 102.0) == []


@dataclass(frozen=True)
class Look:
    """What is seen of one worker at one look, and how long after the one before."""

    after_s: float
    beat: bool
    locked: bool


looks = st.lists(
    st.builds(Look, st.sampled_from((0.5, 0.5, 0.5, 1.4, 1.6, 40.0)), st.booleans(), st.booleans()), max_size=40
)


@given(looks)
def test_who_is_found_dead_was_silent_and_watched_without_a_gap(looks: list[Look]) -> None:
    watch = PeerWatch()
    now, beats = 100.0, 0
    silent_s = unlocked_s = 0.0  # of uninterrupted watching, without a beat, and with the lock free besides
    for index, look in enumerate(looks):
        now += look.after_s
        beats += look.beat
        fresh = index == 0 or look.after_s > LONGEST_GAP_S or look.beat
        silent_s = 0.0 if fresh else silent_s + look.after_s
        was_unlocked = index > 0 and not looks[index - 1].locked
        unlocked_s = 0.0 if fresh or look.locked or not was_unlocked else unlocked_s + look.after_s
        dead = watch.look([peer(beats, locked=look.locked)], now)
        assert bool(dead) == (unlocked_s >= SILENCE_S - 1e-6 or silent_s >= LEASE_S - 1e-6)


@pytest.mark.parametrize("gap_s", [LONGEST_GAP_S, LONGEST_GAP_S + 0.001])
def test_looks_may_be_as_far_apart_as_a_silence_is_long(gap_s: float) -> None:
    assert (first_death([peer(7, locked=False)] * 5, step_s=gap_s) is None) == (gap_s > LONGEST_GAP_S)
