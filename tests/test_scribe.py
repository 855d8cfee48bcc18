"""What the journal's thread does with entries that meet a lock."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from pgworkflows import scribe
from pgworkflows.journal import Entry
from pgworkflows.scribe import HeldOver, Pending


class Clock:
    """A clock that stands still until it is moved."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(scribe, "time", clock)
    return clock


def pending() -> Pending:
    execution: Any = object()
    return execution, Entry(str(uuid4()), 1, 0, "checkpoint")


def test_an_entry_that_meets_a_lock_is_tried_again_after_growing_pauses(clock: Clock) -> None:
    held, entry = HeldOver(), pending()
    pauses = []
    for _ in range(6):
        held.add(entry)
        rest_s = held.rest_s()
        assert rest_s is not None
        pauses.append(round(rest_s, 3))
        assert held.take() == []
        clock.now += rest_s
        assert held.take() == [entry]
    assert pauses == [0.05, 0.1, 0.2, 0.4, 0.5, 0.5]
    assert not held
    assert held.rest_s() is None


def test_the_pauses_of_one_run_are_not_those_of_another_or_of_its_next_entry(clock: Clock) -> None:
    held, first, second = HeldOver(), pending(), pending()
    held.add(first)
    clock.now += 0.05
    assert held.take() == [first]
    held.add(first)
    held.add(second)
    clock.now += 0.06
    assert held.take() == [second]
    clock.now += 0.05
    assert held.take() == [first]
    held.settle(first[1])
    held.add(first)
    assert held.rest_s() == pytest.approx(0.05)
