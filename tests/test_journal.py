"""The journal without a server: batches, their halving, and what is written instead of what was refused."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgworkflows import journal
from pgworkflows.database import Locked, Refused, Unavailable
from pgworkflows.decisions import EventTaken, StepWrite
from pgworkflows.entries import Entry, without_results
from pgworkflows.history import ErrorInfo
from pgworkflows.journal import WRITTEN, Answer, Verdict, write
from pgworkflows.worker_connection import WorkerConnection

WORKER = UUID(int=7)


class Server(WorkerConnection):
    """Takes flushes as the SQL function does, as far as answers go. `bad` are runs whose data it refuses, `held` those
    whose rows somebody else holds in a lock that does not come free, `told` what it says of others."""

    def __init__(
        self,
        *,
        bad: Collection[str] = (),
        held: Collection[str] = (),
        told: Mapping[str, dict[str, Any]] | None = None,
        away_after: int | None = None,
    ) -> None:
        super().__init__("", "pgworkflows")
        self.flushes: list[list[str]] = []
        self.written: list[str] = []
        self.params: list[tuple[Any, ...]] = []
        self._bad = set(bad)
        self._held = set(held)
        self._told = told or {}
        self._away_after = away_after

    def can_send(self, name: str) -> bool:
        return False

    def fetch(self, name: str, params: Sequence[object]) -> Any:
        assert name == "flush"
        worker_id, entries, *_ = params
        assert worker_id == str(WORKER)
        runs = [entry["run_id"] for entry in json.loads(str(entries))]
        self.flushes.append(runs)
        self.params.append(tuple(params))
        if self._away_after is not None and len(self.flushes) > self._away_after:
            raise Unavailable("the server is away")
        if self._bad & set(runs):
            raise Refused("invalid input")
        if self._held & set(runs):
            raise Locked("canceling statement due to lock timeout")
        told = [{"run_id": run, "control": None} | self._told[run] for run in runs if run in self._told]
        self.written += [run for run in runs if self._told.get(run, {}).get("answer", "written") == "written"]
        return json.dumps(told) if told else None


def entry(run_id: str, action: str = "checkpoint", **fields: Any) -> Entry:
    return Entry(run_id, 1, 0, action, **fields)


def row(step_id: str = "step", status: str = "completed", output: str | None = "1", **fields: Any) -> StepWrite:
    return StepWrite(0, step_id, "run", status, output, **fields)


def entries(count: int) -> list[Entry]:
    return [entry(str(number), steps=(row(),)) for number in range(count)]


def test_what_the_server_is_silent_about_is_written_in_one_statement() -> None:
    server = Server()
    assert write(server, WORKER, entries(20)) == [WRITTEN] * 20
    assert len(server.flushes) == 1


def test_answers_come_in_the_order_of_the_entries() -> None:
    told = {
        "1": {"answer": "stale"},
        "3": {"answer": "locked"},
        "4": {"answer": "written", "control": "pause"},
    }
    assert write(Server(told=told), WORKER, entries(6)) == [
        WRITTEN,
        Answer(Verdict.STALE),
        WRITTEN,
        Answer(Verdict.LOCKED),
        Answer(Verdict.WRITTEN, "pause"),
        WRITTEN,
    ]


def test_one_bad_entry_does_not_spoil_the_others() -> None:
    server = Server(bad={"13"})
    answers = write(server, WORKER, entries(64))
    assert answers[13] == Answer(Verdict.REFUSED, reason="invalid input", fact="a value was refused")
    assert answers[:13] + answers[14:] == [WRITTEN] * 63
    assert sorted(server.written, key=int) == [str(number) for number in range(64) if number != 13]
    assert len(server.flushes) == 1 + 2 * 6


def test_a_lock_that_does_not_come_free_holds_up_its_own_entry_only() -> None:
    answers = write(Server(held={"2"}), WORKER, entries(5))
    assert [answer.verdict for answer in answers] == [Verdict.WRITTEN] * 2 + [Verdict.LOCKED] + [Verdict.WRITTEN] * 2


@given(st.integers(1, 40), st.sets(st.integers(0, 39)), st.sets(st.integers(0, 39)), st.sets(st.integers(0, 39)))
def test_every_entry_gets_its_own_answer_and_is_written_at_most_once(
    count: int, bad: set[int], held: set[int], stale: set[int]
) -> None:
    told = {str(number): {"answer": "stale"} for number in stale}
    server = Server(bad=set(map(str, bad)), held=set(map(str, held)), told=told)
    answers = write(server, WORKER, entries(count))
    for number, answer in enumerate(answers):
        if number in bad:
            assert answer.verdict is Verdict.REFUSED
        elif number in held:
            assert answer.verdict is Verdict.LOCKED
        else:
            assert answer.verdict is (Verdict.STALE if number in stale else Verdict.WRITTEN)
    written = [number for number in range(count) if number not in bad | held | stale]
    assert sorted(map(int, server.written)) == written


@pytest.mark.parametrize("away_after", [0, 1, 2])
def test_a_server_that_is_away_is_the_callers_affair_also_in_the_middle(away_after: int) -> None:
    with pytest.raises(Unavailable):
        write(Server(bad={"0"}, away_after=away_after), WORKER, entries(8))


def test_a_batch_too_large_for_one_statement_is_sent_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "MAX_JSON_LENGTH", 100)
    large = [entry(str(number), steps=(row(output="9" * 40),)) for number in range(4)]
    server = Server()
    assert write(server, WORKER, large) == [WRITTEN] * 4
    assert server.flushes == [["0", "1"], ["2", "3"]]
    alone = Server()
    assert write(alone, WORKER, [entry("0", "complete", output="9" * 1000)]) == [WRITTEN]


def test_a_row_says_its_times_in_iso_8601_and_in_seconds() -> None:
    moment = datetime(2030, 1, 1, 12, tzinfo=UTC)
    waiting = StepWrite(
        3,
        "wait",
        "wait_for",
        "waiting",
        wake_at=moment,
        wake_after=timedelta(minutes=1),
        deadline_at=moment,
        deadline_after=timedelta(hours=1),
        event_name="ä",
    )
    suspended = entry("r", "suspend", steps=(waiting,), step_id="wait", wait_kind="event", wait_event="ä")
    server = Server()
    write(server, WORKER, [suspended])
    [(_, sent, rows, events, _)] = server.params
    assert json.loads(sent)[0]["wait_event"] == "ä"
    [sent_row] = json.loads(rows)
    assert (sent_row["run_id"], sent_row["position"], sent_row["status"]) == ("r", 3, "waiting")
    assert datetime.fromisoformat(sent_row["wake_at"]) == datetime.fromisoformat(sent_row["deadline_at"]) == moment
    assert (sent_row["wake_after"], sent_row["deadline_after"]) == (60, 3600)
    assert sent_row["event_name"] == "ä"
    assert events is None


def test_an_error_and_an_output_travel_as_json_text() -> None:
    error = ErrorInfo("OSError", 'no "way"', "Traceback …", "step")
    failing = entry("f", "fail", steps=(row(status="failed", output=None, error=error),), error=error)
    completing = entry(
        "c", "complete", steps=(row(output='{"b":1,"a":1e16}'),), output="[1]", events=(EventTaken(5, "w"),)
    )
    server = Server()
    write(server, WORKER, [failing, completing])
    [(_, sent, rows, events, _)] = server.params
    failed, completed = json.loads(sent)
    expected = {"type": "OSError", "message": 'no "way"', "traceback": "Traceback …", "step_id": "step"}
    assert json.loads(failed["error"]) == expected
    assert completed["output"] == "[1]"
    assert json.loads(json.loads(rows)[0]["error"]) == expected
    assert json.loads(rows)[1]["output"] == '{"b":1,"a":1e16}'
    assert json.loads(events) == [{"run_id": "c", "event_id": 5, "step_id": "w"}]


def test_a_step_whose_result_was_refused_has_failed_and_its_run_is_replayed() -> None:
    refused = entry(
        "r", "suspend", steps=(row("bad", attempts=2, prior_attempts=1),), step_id="next", wait_kind="timer"
    )
    instead = without_results(refused, "nested too deeply")
    assert (instead.action, instead.run_id, instead.claim_id, instead.step_id) == ("release", "r", 1, "bad")
    [failed] = instead.steps
    assert (failed.status, failed.output, failed.attempts, failed.prior_attempts) == ("failed", None, 2, 1)
    assert failed.error == ErrorInfo(
        "SerializationError", "PostgreSQL cannot keep what it returned: nested too deeply", None, "bad"
    )


def test_a_run_whose_output_was_refused_has_failed() -> None:
    instead = without_results(entry("r", "complete", output="[[[[]]]]"), "nested too deeply")
    assert (instead.action, instead.steps, instead.output) == ("fail", (), None)
    assert instead.error is not None
    assert instead.error.type == "SerializationError"


def test_what_is_written_instead_holds_nothing_of_what_was_refused() -> None:
    refused = entry("r", "complete", steps=(row("bad", output="BAD"),), events=(EventTaken(1, "w"),), output="BAD")
    instead = without_results(refused, "no")
    assert "BAD" not in repr(instead)
    assert instead.events == ()
