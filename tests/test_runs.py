"""The table of transitions, and that the code's and the database's other words on statuses agree with it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pgworkflows.history import StepKind, StepStatus
from pgworkflows.runs import (
    CANCELLABLE,
    FINISHED,
    PAUSABLE,
    RESUMABLE,
    RETRYABLE,
    TRANSITIONS,
    UNFINISHED,
    RunStatus,
)

MIGRATION = Path(__file__).parents[1] / "migrations" / "0006_speed.sql"


def reachable(start: RunStatus) -> set[RunStatus]:
    """What a run that is `start` may still become."""
    found: set[RunStatus] = set()
    pending = [start]
    while pending:
        pending += (following := TRANSITIONS[pending.pop()] - found)
        found |= following
    return found


def words_of(constraint: str) -> set[str]:
    """The words that the CHECK of a domain allows."""
    found = re.search(
        rf"constraint {constraint} check \(\s*(?:\w+ is null or )?\w+ in \(([^)]*)\)", MIGRATION.read_text()
    )
    assert found is not None, constraint
    return set(re.findall(r"'(\w+)'", found[1]))


def test_every_status_has_its_row() -> None:
    assert set(TRANSITIONS) == set(RunStatus)


def test_no_status_follows_itself() -> None:
    assert not [status for status in RunStatus if status in TRANSITIONS[status]]


def test_a_run_that_was_just_started_may_become_anything() -> None:
    assert reachable(RunStatus.PENDING) == set(RunStatus)


@pytest.mark.parametrize("status", sorted(UNFINISHED))
def test_every_unfinished_run_may_end_in_every_way(status: RunStatus) -> None:
    assert reachable(status) >= FINISHED


@pytest.mark.parametrize("status", sorted(FINISHED))
def test_what_is_finished_begins_again_only_by_a_retry(status: RunStatus) -> None:
    assert TRANSITIONS[status] == ({RunStatus.PENDING} if status in RETRYABLE else set())
    assert status.finished


def test_a_completed_run_stays_so() -> None:
    assert not reachable(RunStatus.COMPLETED)


def test_only_a_worker_ends_a_run_with_success() -> None:
    assert {status for status in RunStatus if RunStatus.COMPLETED in TRANSITIONS[status]} == {RunStatus.RUNNING}


def test_only_a_worker_leaves_a_run_waiting() -> None:
    assert {status for status in RunStatus if RunStatus.WAITING in TRANSITIONS[status]} == {RunStatus.RUNNING}


@pytest.mark.parametrize(
    ("allowed", "becomes"),
    [
        (PAUSABLE, RunStatus.PAUSED),
        (RESUMABLE, RunStatus.PENDING),
        (CANCELLABLE, RunStatus.CANCELLED),
        (RETRYABLE, RunStatus.PENDING),
    ],
)
def test_what_a_client_may_ask_for_is_in_the_table(allowed: frozenset[RunStatus], becomes: RunStatus) -> None:
    assert all(becomes in TRANSITIONS[status] for status in allowed)


@pytest.mark.parametrize(("allowed", "becomes"), [(PAUSABLE, RunStatus.PAUSED), (CANCELLABLE, RunStatus.CANCELLED)])
def test_nobody_else_pauses_or_cancels(allowed: frozenset[RunStatus], becomes: RunStatus) -> None:
    assert {status for status in RunStatus if becomes in TRANSITIONS[status]} == allowed


def test_every_unfinished_run_may_run_out_of_time() -> None:
    assert all(RunStatus.FAILED in TRANSITIONS[status] for status in UNFINISHED)


def test_the_database_knows_the_same_words() -> None:
    assert words_of("run_status_is_known") == set(RunStatus)
    assert words_of("queue_status_is_known") == UNFINISHED
    assert words_of("step_kind_is_known") == set(StepKind)
    assert words_of("step_status_is_known") == set(StepStatus)
