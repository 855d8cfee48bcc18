"""What most entries say goes by columns: it leaves the rows that documents leave, and all of it or nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from working import HandWorker, rows, value

from pgworkflows import WorkflowClient, claims
from pgworkflows.claims import ClaimedRun
from pgworkflows.columns import SEPARATOR, Row, columns_of, row_of
from pgworkflows.database import Refused
from pgworkflows.decisions import StepWrite
from pgworkflows.documents import spelled
from pgworkflows.entries import Entry
from pgworkflows.history import ErrorInfo
from pgworkflows.journal import NOTHING_ELSE, Verdict

TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)
RESULTS = st.recursive(st.none() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS, st.lists)
STEPS = (
    "select step_id, position, kind, status, output::text, error::text, attempts, prior_attempts, wake_at, "
    "deadline_at, event_name, child_run_id, completed_at is not null, started_at <= completed_at "
    "from pgworkflows.steps where run_id = %s order by position"
)
RUN = (
    "select status, output::text, error::text, current_step_id, completed_at is not null, retry_count, "
    "updated_at = coalesce(completed_at, updated_at) from pgworkflows.runs where id = %s"
)
QUEUE = "select status, claim_id is not null, interruptions, signal, wake_at from pgworkflows.queue where run_id = %s"


@pytest.fixture
def hand(database_url: str) -> Iterator[HandWorker]:
    with HandWorker(database_url, ["plan"]) as hand:
        yield hand


def claimed(hand: HandWorker, url: str, count: int) -> list[ClaimedRun]:
    with WorkflowClient(url) as client:
        client.start_workflows("plan", [None] * count)
    runs = list(hand.claim(count).runs)
    assert len(runs) == count
    return runs


def returned(run: ClaimedRun, step_id: str = "a", output: str = "1", *, position: int = 0, **changes: Any) -> Entry:
    """A step has returned, and its run goes on."""
    step = StepWrite(position, step_id, "run", "completed", output, attempts=1, elapsed_s=0.0015)
    return Entry(run.run_id, run.claim_id, run.signal, "checkpoint", (step._replace(**changes),))


def ended(run: ClaimedRun, step_id: str = "a", output: str = "1", end: str = '{"x": 1}', *, position: int = 0) -> Entry:
    """A step has returned, and its run has ended with it."""
    return returned(run, step_id, output, position=position)._replace(action="complete", step_id=step_id, output=end)


def by_columns(hand: HandWorker, *entries: Entry) -> bool:
    made = [row_of(entry) for entry in entries]
    taken = [row for row in made if row is not None]
    assert len(taken) == len(entries)
    return claims.flush_results(hand.connection, (*columns_of(hand.id, taken), *NOTHING_ELSE))


def by_documents(hand: HandWorker, *entries: Entry) -> None:
    assert claims.flush(hand.connection, spelled(hand.id, entries)) == []


def left(url: str, run_id: str) -> list[list[tuple[Any, ...]]]:
    """All that is there of a run, but for its ids and times."""
    return [rows(url, query, run_id) for query in (STEPS, RUN, QUEUE)]


def nothing_is_written(url: str) -> bool:
    return value(url, "select count(*) from pgworkflows.steps") == 0 and not rows(
        url, "select 1 from pgworkflows.runs where completed_at is not null"
    )


# --- what is a row


@pytest.mark.parametrize(
    "change",
    [
        lambda entry: entry._replace(steps=()),
        lambda entry: entry._replace(steps=entry.steps * 2),
        lambda entry: entry._replace(events=({},)),
        lambda entry: entry._replace(action="suspend"),
        lambda entry: entry._replace(action="release"),
        lambda entry: entry._replace(action="fail", error=ErrorInfo("E", "no")),
        lambda entry: entry._replace(action="complete", output="1", parent_run_id=str(uuid4())),
        lambda entry: entry._replace(steps=(entry.steps[0]._replace(kind="poll"),)),
        lambda entry: entry._replace(steps=(entry.steps[0]._replace(status="failed"),)),
        lambda entry: entry._replace(steps=(entry.steps[0]._replace(status="retrying", output=None),)),
        lambda entry: entry._replace(steps=(entry.steps[0]._replace(attempts=2),)),
        lambda entry: entry._replace(steps=(entry.steps[0]._replace(prior_attempts=1),)),
        lambda entry: entry._replace(steps=(entry.steps[0]._replace(step_id=f"a{SEPARATOR}b"),)),
        lambda entry: entry._replace(steps=(entry.steps[0]._replace(output=f'"{SEPARATOR}"'),)),
        lambda entry: entry._replace(steps=(entry.steps[0]._replace(output="1\0"),)),
        lambda entry: entry._replace(action="complete", output="1\0"),
    ],
)
def test_whatever_says_more_is_no_row(change: Callable[[Entry], Entry]) -> None:
    run = ClaimedRun("r", 1, "plan", None, "null", 0, 0, 0, 0, (), (), None, None)  # type: ignore[arg-type]  # unused
    assert row_of(returned(run)) == Row("r", 1, 0, "a", "1", 1500, None)
    assert row_of(change(returned(run))) is None


def test_a_child_that_goes_on_is_a_row() -> None:
    run = ClaimedRun("r", 1, "plan", None, "null", 0, 0, 0, 0, (), (), None, None)  # type: ignore[arg-type]  # unused
    assert row_of(returned(run)._replace(parent_run_id=str(uuid4()))) is not None


# --- what they leave


@pytest.mark.parametrize("make", [returned, ended])
def test_columns_and_documents_leave_the_same(hand: HandWorker, database_url: str, make: Callable[..., Entry]) -> None:
    one, other = claimed(hand, database_url, 2)
    for position, step_id in enumerate(["first", "second"]):
        assert by_columns(hand, returned(one, step_id, position=position))
        by_documents(hand, returned(other, step_id, position=position))
    assert by_columns(hand, make(one, "last", '{"a": [1, "ä"]}', position=2))
    by_documents(hand, make(other, "last", '{"a": [1, "ä"]}', position=2))
    assert left(database_url, one.run_id) == left(database_url, other.run_id)
    took = "select completed_at - started_at = interval '1.5 ms' from pgworkflows.steps"
    assert rows(database_url, took) == [(True,)] * 6


def test_an_earlier_failure_of_a_run_that_ends_well_is_taken_back(hand: HandWorker, database_url: str) -> None:
    [run] = claimed(hand, database_url, 1)
    rows(database_url, "update pgworkflows.runs set error = '{}' where id = %s", run.run_id)
    assert by_columns(hand, ended(run))
    assert value(database_url, "select error from pgworkflows.runs") is None


def test_some_runs_end_and_others_go_on(hand: HandWorker, database_url: str) -> None:
    runs = claimed(hand, database_url, 6)
    made = [ended(run, end=str(n)) if n % 2 else returned(run, f"s{n}", str(n)) for n, run in enumerate(runs)]
    assert by_columns(hand, *made)
    query = (
        "select r.status, r.output::text, s.step_id, s.output::text, q.run_id is null from pgworkflows.runs as r "
        "join pgworkflows.steps as s on s.run_id = r.id left join pgworkflows.queue as q on q.run_id = r.id "
        "where r.id = %s"
    )
    for n, run in enumerate(runs):
        expected = ("completed", str(n), "a", "1", True) if n % 2 else ("running", None, f"s{n}", str(n), False)
        assert rows(database_url, query, run.run_id) == [expected]


@pytest.fixture(scope="module")
def one_hand(databases: Any, migrated_template: str) -> Iterator[tuple[HandWorker, str]]:
    with databases.fresh(migrated_template) as url, HandWorker(url, ["plan"]) as hand:
        yield hand, url


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(TEXTS, RESULTS, st.booleans()), min_size=1, max_size=5))
def test_any_text_arrives_as_it_is(one_hand: tuple[HandWorker, str], given: list[tuple[str, Any, bool]]) -> None:
    hand, url = one_hand
    wanted = [
        (step_id.replace(SEPARATOR, "?").replace("\0", "?"), json.dumps(output), ends)
        for step_id, output, ends in given
    ]
    runs = claimed(hand, url, len(wanted))
    made = [
        (ended(run, step_id, text, text) if ends else returned(run, step_id, text))
        for run, (step_id, text, ends) in zip(runs, wanted, strict=True)
    ]
    assert by_columns(hand, *made)
    query = (
        "select s.step_id, s.output::text, r.output::text from pgworkflows.steps as s "
        "join pgworkflows.runs as r on r.id = s.run_id where r.id = %s"
    )
    for run, (step_id, text, ends) in zip(runs, wanted, strict=True):
        assert rows(url, query, run.run_id) == [(step_id, text, text if ends else None)]


# --- all, or nothing


def died(hand: HandWorker, run: ClaimedRun, url: str) -> None:
    rows(url, "update pgworkflows.queue set worker_id = %s where run_id = %s", uuid4(), run.run_id)


def claimed_anew(hand: HandWorker, run: ClaimedRun, url: str) -> None:
    rows(url, "update pgworkflows.queue set claim_id = claim_id + 1 where run_id = %s", run.run_id)


def asked_to_pause(hand: HandWorker, run: ClaimedRun, url: str) -> None:
    with WorkflowClient(url) as client:
        client.pause_workflow(run.run_id)


def interrupted(hand: HandWorker, run: ClaimedRun, url: str) -> None:
    rows(url, "update pgworkflows.queue set interruptions = 1 where run_id = %s", run.run_id)


def gone(hand: HandWorker, run: ClaimedRun, url: str) -> None:
    rows(url, "delete from pgworkflows.queue where run_id = %s", run.run_id)


@pytest.mark.parametrize(
    ("spoil", "verdict", "control"),
    [
        (died, Verdict.STALE, None),
        (claimed_anew, Verdict.STALE, None),
        (gone, Verdict.STALE, None),
        (asked_to_pause, Verdict.WRITTEN, "pause"),
        (interrupted, Verdict.WRITTEN, None),
    ],
)
def test_what_is_out_of_the_ordinary_with_one_run_is_left_to_documents(
    hand: HandWorker,
    database_url: str,
    spoil: Callable[[HandWorker, ClaimedRun, str], None],
    verdict: Verdict,
    control: str | None,
) -> None:
    runs = claimed(hand, database_url, 3)
    spoil(hand, runs[1], database_url)
    made = [ended(runs[0]), returned(runs[1]), returned(runs[2])]
    assert not by_columns(hand, *made)
    assert nothing_is_written(database_url)
    answers = hand.write(*made)
    assert [answer.verdict for answer in answers] == [Verdict.WRITTEN, verdict, Verdict.WRITTEN]
    assert answers[1].control == control
    assert value(database_url, "select count(*) from pgworkflows.steps") == (2 if verdict is Verdict.STALE else 3)


def test_a_row_that_somebody_holds_is_not_waited_for(hand: HandWorker, database_url: str) -> None:
    runs = claimed(hand, database_url, 2)
    with psycopg.connect(database_url) as holder:
        holder.execute("select from pgworkflows.queue where run_id = %s for update", (runs[0].run_id,))
        assert not by_columns(hand, *map(returned, runs))
        assert [answer.verdict for answer in hand.write(*map(returned, runs))] == [Verdict.LOCKED, Verdict.WRITTEN]


def test_a_step_that_was_stored_before_is_never_written_again(hand: HandWorker, database_url: str) -> None:
    """An answer was lost: the same is sent once more."""
    runs = claimed(hand, database_url, 2)
    assert by_columns(hand, returned(runs[0], output="1"))
    with pytest.raises(Refused, match="duplicate key"):
        by_columns(hand, returned(runs[0], output="2"), returned(runs[1]))
    assert [answer.verdict for answer in hand.write(returned(runs[0], output="2"), returned(runs[1]))] == [
        Verdict.WRITTEN,
        Verdict.WRITTEN,
    ]
    query = "select output::text from pgworkflows.steps where run_id = %s"
    assert [value(database_url, query, run.run_id) for run in runs] == ["1", "1"]


def test_a_result_that_the_server_refuses_spoils_nothing_for_the_others(hand: HandWorker, database_url: str) -> None:
    runs = claimed(hand, database_url, 3)
    made = [returned(runs[0]), returned(runs[1], output="no JSON"), ended(runs[2])]
    with pytest.raises(Refused):
        by_columns(hand, *made)
    assert nothing_is_written(database_url)
    assert [answer.verdict for answer in hand.write(*made)] == [Verdict.WRITTEN, Verdict.REFUSED, Verdict.WRITTEN]


def test_rows_and_documents_go_together(hand: HandWorker, database_url: str) -> None:
    runs = claimed(hand, database_url, 3)
    pause = Entry(runs[1].run_id, runs[1].claim_id, runs[1].signal, "release")
    assert hand.fly(returned(runs[0]), pause, ended(runs[2])) is None
    query = "select status from pgworkflows.runs where id = %s"
    assert [value(database_url, query, run.run_id) for run in runs] == ["running", "pending", "completed"]


def test_when_the_documents_are_refused_the_rows_are_not_written(hand: HandWorker, database_url: str) -> None:
    runs = claimed(hand, database_url, 2)
    bad = Entry(runs[1].run_id, runs[1].claim_id, runs[1].signal, "complete", output="no JSON")
    with pytest.raises(Refused):
        hand.fly(returned(runs[0]), bad)
    assert nothing_is_written(database_url)


def test_when_the_rows_are_out_of_the_ordinary_the_documents_are_not_written(
    hand: HandWorker, database_url: str
) -> None:
    runs = claimed(hand, database_url, 2)
    gone(hand, runs[0], database_url)
    release = Entry(runs[1].run_id, runs[1].claim_id, runs[1].signal, "release")
    assert hand.fly(returned(runs[0]), release) == "false"
    assert value(database_url, "select status from pgworkflows.runs where id = %s", UUID(runs[1].run_id)) == "running"


def test_a_stale_document_beside_rows_is_told(hand: HandWorker, database_url: str) -> None:
    runs = claimed(hand, database_url, 2)
    gone(hand, runs[1], database_url)
    release = Entry(runs[1].run_id, runs[1].claim_id, runs[1].signal, "release")
    [told] = json.loads(hand.fly(returned(runs[0]), release))
    assert (told["run_id"], told["answer"]) == (runs[1].run_id, "stale")
    assert value(database_url, "select count(*) from pgworkflows.steps") == 1
