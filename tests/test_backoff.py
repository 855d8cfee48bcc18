"""How a worker's thread paces itself and what it says when the server fails it."""

from __future__ import annotations

import logging

import pytest

from pgworkflows import backoff
from pgworkflows.backoff import CALM_S, Backoff
from pgworkflows.database import Unavailable


class Clock:
    """A clock that stands still until it is moved."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(backoff, "time", clock)
    return clock


@pytest.fixture
def patience(clock: Clock, caplog: pytest.LogCaptureFixture) -> Backoff:
    return Backoff(logging.getLogger("pgworkflows"), "it")


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [message.removeprefix("pgworkflows: it ") for message in caplog.messages]
    caplog.clear()
    return found


def test_pauses_grow_to_five_seconds_and_no_two_workers_keep_step(patience: Backoff) -> None:
    other = Backoff(logging.getLogger("pgworkflows"), "another")
    longest = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    mine, others = ([each.failed(Unavailable("away")) for _ in longest] for each in (patience, other))
    for pause_s, other_pause_s, most_s in zip(mine, others, longest, strict=True):
        assert most_s / 2 <= pause_s <= most_s
        assert most_s / 2 <= other_pause_s <= most_s
    assert mine != others
    patience.succeeded()
    assert patience.failed(Unavailable("away")) <= 0.1


def test_a_long_outage_is_told_once_with_the_reason_that_lasts(
    patience: Backoff, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    patience.failed(Unavailable("connection lost"))
    for number in range(10_000):
        clock.now += 5
        patience.failed(Unavailable("too many\nclients" if number % 2 else f"no answer to {number}"))
    assert said(caplog) == ["failed, trying again: connection lost", "failed, trying again: no answer to 0"]
    for _ in range(3):
        patience.succeeded()
    assert said(caplog) == ["works again after 10001 failures"]


def test_trouble_that_comes_and_goes_is_one_trouble(
    patience: Backoff, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(1000):
        clock.now += 1
        patience.failed(Unavailable("connection\nlost"))
        patience.succeeded()
    assert said(caplog) == ["failed, trying again: connection lost", "works again after 1 failures"]
    # In the end it stays away: that is told, though late.
    for _ in range(10):
        clock.now += 5
        patience.failed(Unavailable("connection lost"))
    patience.succeeded()
    assert said(caplog) == ["failed, trying again: connection lost", "works again after 1009 failures"]


def test_after_a_calm_time_the_same_is_told_again(
    patience: Backoff, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        patience.failed(Unavailable("connection lost"))
        patience.succeeded()
        assert said(caplog) == ["failed, trying again: connection lost", "works again after 1 failures"]
        clock.now += CALM_S + 1


def test_what_nobody_expects_is_told_without_its_words(patience: Backoff, caplog: pytest.LogCaptureFixture) -> None:
    patience.failed(Unavailable("connection lost"))
    patience.failed(KeyError("a payload"))
    assert not any(record.exc_info for record in caplog.records)
    assert said(caplog)[1] == "failed, trying again: KeyError"
