"""How fast something is counted up, as it was of late."""

from __future__ import annotations

import pytest

from pgworkflows import pace
from pgworkflows.pace import Pace


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pace, "time", clock)
    return clock


def test_it_is_that_of_the_last_window_and_of_the_present_one_as_soon_as_that_has_more(clock: Clock) -> None:
    count = 0
    pace = Pace(lambda: count, 0.5)
    assert pace.expected() == 0
    clock.now, count = 0.25, 10
    assert pace.expected() == 10
    clock.now, count = 1.0, 40
    assert pace.expected() == 20  # 40 in a whole second
    clock.now, count = 1.25, 45
    assert pace.expected() == 20
    count = 70
    assert pace.expected() == 30


def test_it_falls_when_nothing_comes_any_more(clock: Clock) -> None:
    count = 0
    pace = Pace(lambda: count, 0.5)
    count = 100
    assert pace.rising
    clock.now = 0.5
    assert pace.expected() == 100
    assert pace.rising
    clock.now = 1.0
    assert pace.expected() == 0
    assert not pace.rising
