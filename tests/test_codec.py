"""Payloads at rest: what a codec encodes stands nowhere in the database, and comes back wherever it is read."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from cryptography.fernet import Fernet
from hypothesis import given
from hypothesis import strategies as st
from waiting import until
from working import rows, value, worker_processes, working

from examples.encrypted_payloads.codecs import FernetCodec, ZlibCodec
from pgworkflows import (
    ChildWorkflowFailedError,
    ConfigurationError,
    PayloadCodec,
    RunStatus,
    SerializationError,
    Step,
    StepFailedError,
    Steps,
    StepStatus,
    Workflow,
    WorkflowClient,
    WorkflowEngine,
    WorkflowRun,
    current_step,
    dispatcher,
    payloads,
    workflow,
)
from pgworkflows.history import ChildEnd, ErrorInfo
from pgworkflows.jsontext import ENCODED, encode_plain, parse_json
from pgworkflows.payloads import Payloads, Unreadable

ROOT = Path(__file__).parents[1]
CANARY = "tweety-4711"
OLD, NEW = Fernet.generate_key().decode(), Fernet.generate_key().decode()


class Mirror:
    """Nothing is secret behind it, but everything is turned round."""

    name = "mirror"

    def encode(self, text: str) -> str | None:
        return text[::-1]

    def decode(self, data: str) -> str:
        return data[::-1]


class Choosy(Mirror):
    """Raises for what holds a word."""

    name = "choosy"

    def encode(self, text: str) -> str:
        if "poison" in text:
            raise RuntimeError(f"I will not have {text}")
        return text[::-1]


def tables(url: str) -> list[str]:
    return [name for (name,) in rows(url, "select tablename from pg_tables where schemaname = 'pgworkflows'")]


def places_of(url: str, word: str) -> set[str]:
    """The tables and columns in which a word stands."""
    return {
        f"{table}.{column}"
        for table in tables(url)
        for (row,) in rows(url, f"select row_to_json(t)::text from pgworkflows.{table} as t")
        for column, content in json.loads(row).items()
        if word in json.dumps(content)
    }


def stand_still(engine: WorkflowEngine) -> None:
    engine.worker(threads=4).run_until_idle(timeout=60)


# A bit of everything ------------------------------------------------------------------------------------------------


def echo(word: str) -> str:
    return f"{word}, twice {word}"


def see_nothing() -> str:
    return ""


def hesitate(word: str) -> str:
    if current_step().attempt == 1:
        raise ValueError(f"not yet, {word}")
    return word


def fail(word: str) -> None:
    raise LookupError(f"no {word} here")


@workflow("child")
def child(step: Step, input: str) -> Steps[str]:
    return (yield from step.run("echo", echo, input))


@workflow("failing-child")
def failing_child(step: Step, input: str) -> Steps[None]:
    yield from step.run("fail", fail, input)


@workflow("everything", retries=1)
def everything(step: Step, input: str) -> Steps[list[Any]]:
    told: list[Any] = [(yield from step.run("echo", echo, input))]
    told.append((yield from step.run("hesitate", hesitate, input).retry(attempts=2, wait=0.01)))
    try:
        yield from step.run("fail", fail, input)
    except StepFailedError as error:
        told.append(error.message)
    told.append((yield from step.wait_for("hear", "word")))
    told.append((yield from step.wait_for("skip", "never")))
    told.append((yield from step.poll("look", echo, input)).data)
    told.append((yield from step.poll("look-away", see_nothing)).data)
    told.append((yield from step.invoke_child_workflow("child", child, input)))
    try:
        yield from step.invoke_child_workflow("failing-child", failing_child, input)
    except ChildWorkflowFailedError as error:
        told.append(f"{error.message} {error.error and error.error['message']}")
    yield from step.pause("rest")
    return told


@workflow("doomed")
def doomed(step: Step, input: str) -> Steps[None]:
    yield from step.run("fail", fail, input)


@workflow("daily", schedule="0 0 * * *")
def daily(step: Step, input: str = CANARY) -> Steps[str]:
    return (yield from step.run("echo", echo, input))


class Adorned:
    """A plugin that puts something of its own around results."""

    name = "adorned"

    def wrap_step(self, context: Any, step: Any, call: Callable[[], Any]) -> Any:
        result = call()
        return f"{CANARY}: {result}" if isinstance(result, str) and result else result


EVERYTHING: list[Workflow[Any, Any]] = [child, failing_child, everything, doomed, daily]


def play(engine: WorkflowEngine) -> list[WorkflowRun]:
    """Everything happens once: the runs as they are then."""
    engine.start(worker=False)
    with working(engine, threads=4):

        def reaches(step_id: str, status: RunStatus) -> bool:
            run = engine.get_run(main.id)
            assert not run.status.finished, run.error
            return (run.current_step_id, run.status) == (step_id, status)

        main = engine.start_workflow(everything, CANARY)
        others = engine.start_workflows(doomed, [CANARY, CANARY])
        engine.start_workflow(daily, CANARY, delay="1 hour")
        engine.trigger_event(main.id, "word", {"word": CANARY})
        until(lambda: reaches("skip", RunStatus.WAITING), "it waits for what never comes")
        engine.fast_forward_workflow(main.id, [CANARY])
        until(lambda: reaches("look-away", RunStatus.WAITING), "it polls in vain")
        engine.fast_forward_workflow(main.id, CANARY)
        until(lambda: reaches("rest", RunStatus.PAUSED), "it pauses")
        engine.trigger_event(main.id, "for nobody", CANARY)
        tick = engine.trigger_schedule(daily)
        engine.resume_workflow(main.id)
        return [engine.wait_for_run(run.id, timeout=30) for run in (main, *others, tick)]


def outcomes(engine: WorkflowEngine, runs: Iterable[WorkflowRun]) -> str:
    """What can be read of runs, without the ids, which differ from one time to the next."""
    told: list[Any] = []
    for run in runs:
        told += [run.status, run.input, run.output, run.error]
        told += [(step.step_id, step.status, step.output, step.error) for step in engine.get_steps(run.id)]
    return re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "an id", repr(told))


@pytest.mark.parametrize("codec", [FernetCodec(NEW, OLD), None], ids=["encrypted", "plain"])
def test_a_secret_word_stands_nowhere_in_the_database(database_url: str, codec: PayloadCodec | None) -> None:
    with WorkflowEngine(database_url, workflows=EVERYTHING, codec=codec, plugins=[Adorned()]) as engine:
        main, *others, tick = play(engine)
        assert main.status is RunStatus.COMPLETED, main.error
        assert json.dumps(main.output).count(CANARY) >= 9
        assert [run.status for run in others] == [RunStatus.FAILED] * 2
        assert all(run.error and run.error["message"] == f"no {CANARY} here" for run in others)
        assert tick.input == engine.get_schedule(daily).input == CANARY
        found = places_of(database_url, CANARY)
    # Without a codec it is found, so the search would find it.
    plain = {"runs.input", "runs.output", "runs.error", "steps.output", "steps.error", "events.data", "schedules.input"}
    assert found == (plain if codec is None else set())


def test_what_is_read_is_the_same_with_a_codec_and_without(databases: Any, migrated_template: str) -> None:
    seen: list[str] = []
    for codec in (None, FernetCodec(NEW), ZlibCodec(threshold=0)):
        with (
            databases.fresh(migrated_template) as url,
            WorkflowEngine(url, workflows=EVERYTHING, codec=codec) as engine,
        ):
            seen.append(outcomes(engine, play(engine)))
    assert seen[0] == seen[1] == seen[2]
    assert "'message': 'child run an id of workflow 'failing-child' failed with LookupError" in seen[0].replace(
        '"', "'"
    )


# Workers with and without -------------------------------------------------------------------------------------------


@workflow("talk")
def talk(step: Step, input: str) -> Steps[list[Any]]:
    first = yield from step.run("first", echo, input)
    heard = yield from step.wait_for("hear", "word")
    return [first, heard, (yield from step.run("last", echo, input))]


def begun(url: str, codec: PayloadCodec | None) -> UUID:
    """A run that waits after its first step."""
    with WorkflowEngine(url, workflows=[talk], codec=codec) as engine:
        run = engine.start_workflow(talk, CANARY)
        engine.worker(threads=2).run_until_idle(timeout=30)
        assert engine.get_run(run.id).status is RunStatus.WAITING
    return run.id


def finished(url: str, run_id: UUID, codec: PayloadCodec | None, *readers: PayloadCodec) -> WorkflowRun:
    """The run as it ends with these codecs."""
    with WorkflowEngine(url, workflows=[talk], codec=codec, read_codecs=readers) as engine:
        engine.trigger_event(run_id, "word", CANARY)
        engine.worker(threads=2).run_until_idle(timeout=30)
        return engine.get_run(run_id)


TALKED = [f"{CANARY}, twice {CANARY}", CANARY, f"{CANARY}, twice {CANARY}"]


@pytest.mark.parametrize(
    ("before", "after", "readers"),
    [
        (None, FernetCodec(NEW), ()),
        (FernetCodec(OLD), FernetCodec(NEW, OLD), ()),
        (FernetCodec(OLD), None, (FernetCodec(OLD),)),
        (ZlibCodec(0), FernetCodec(NEW), (ZlibCodec(),)),
    ],
    ids=["turned on", "key rotated", "turned off", "changed"],
)
def test_a_codec_is_turned_on_changed_and_turned_off_while_runs_are_under_way(
    database_url: str, before: PayloadCodec | None, after: PayloadCodec | None, readers: tuple[PayloadCodec, ...]
) -> None:
    run = finished(database_url, begun(database_url, before), after, *readers)
    assert (run.status, run.output) == (RunStatus.COMPLETED, TALKED)
    [(output,)] = rows(database_url, "select output from pgworkflows.runs")
    assert output == TALKED if after is None else output[ENCODED] == after.name


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (None, "has payloads of codec 'fernet', which is not given: pass it as codec= or in read_codecs="),
        (FernetCodec(OLD), "has payloads that codec 'fernet' cannot decode (InvalidToken): give it the key"),
    ],
    ids=["no codec", "another key"],
)
def test_a_run_that_one_worker_cannot_read_is_left_to_another(
    database_url: str,
    other: PayloadCodec | None,
    reason: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatcher, "RECOUNT_EVERY_S", 0.05)
    run_id = begun(database_url, FernetCodec(NEW))
    before = rows(database_url, "select step_id, output::text from pgworkflows.steps")
    with (
        WorkflowEngine(database_url, workflows=[talk], codec=other) as without,
        WorkflowEngine(database_url, workflows=[talk], codec=FernetCodec(NEW)) as engine,
        WorkflowEngine(database_url, workflows=[child], codec=FernetCodec(NEW)) as elsewhere,
    ):
        further = [elsewhere.start_workflow("child", CANARY)]
        without.register_workflow(child)
        engine.trigger_event(run_id, "word", CANARY)
        with working(without, threads=2):
            claims = "select max(claim_id) from pgworkflows.queue where claim_id is not null"
            first = until(lambda: value(database_url, claims), "it is claimed")
            until(lambda: (value(database_url, claims) or 0) > first + 4, "it is given back, and claimed again")
            # Nothing has become of it, not even a taken-over run, which is failed at some time.
            assert engine.get_run(run_id).error is None
            assert rows(database_url, "select step_id, output::text from pgworkflows.steps") == before
            assert value(database_url, "select sum(interruptions) from pgworkflows.queue") == 0
            engine.register_workflow(child)
            with working(engine, threads=2):
                assert engine.wait_for_run(run_id, timeout=30).output == TALKED
                assert engine.wait_for_run(further[0].id, timeout=30).status is RunStatus.COMPLETED
    said = [record.getMessage() for record in caplog.records if reason in record.getMessage()]
    assert len(said) == 2, "once for each workflow, however often it is claimed"
    assert any(f"run {run_id} of workflow talk {reason}" in line for line in said)


def test_a_history_is_replayed_by_another_process_after_a_kill(database_url: str) -> None:
    with worker_processes(database_url) as processes, WorkflowClient(database_url, codec=FernetCodec(NEW)) as client:
        victim = processes.start(threads=2, keys=[NEW])
        victim.await_registration()
        run = client.start_workflow("story", {"steps": ["a", "b", "c"], "gated": ["b"]})
        until(lambda: "b" in [step for step, _ in processes.calls(run.id)], "it is in its second step")
        victim.kill()
        other = processes.start(threads=2, keys=[NEW, OLD])
        other.await_registration()
        processes.open_gate("b")
        ended = client.wait_for_run(run.id, timeout=30)
        assert ended.output == [victim.pid, other.pid, other.pid]
        assert processes.calls(run.id) == [("a", victim.pid), ("b", victim.pid), ("b", other.pid), ("c", other.pid)]
    stored = rows(database_url, "select output from pgworkflows.steps union all select output from pgworkflows.runs")
    assert [output[ENCODED] for (output,) in stored] == ["fernet"] * 4


def test_who_looks_without_the_key_sees_envelopes_and_the_rest(database_url: str) -> None:
    with WorkflowEngine(database_url, workflows=[doomed], codec=FernetCodec(NEW)) as engine:
        run = engine.start_workflow(doomed, CANARY)
        stand_still(engine)
    for codec in (None, FernetCodec(OLD), Mirror()):
        with WorkflowClient(database_url, codec=codec) as client:
            seen = client.wait_for_run(run.id)
            [step] = client.get_steps(run.id)
            assert (seen.input[ENCODED], client.get_runs().items[0].input[ENCODED]) == ("fernet", "fernet")
            assert client.check_progress(run.id).status is RunStatus.FAILED
            for error in (seen.error, step.error):
                assert error is not None
                assert (error["type"], error["message"], error["step_id"]) == (
                    "LookupError",
                    "(encoded by 'fernet')",
                    "fail",
                )
                assert json.loads(error["traceback"])[ENCODED] == "fernet"
            with pytest.raises(ConfigurationError, match="two codecs are named 'fernet'"):
                WorkflowClient(database_url, codec=FernetCodec(OLD), read_codecs=[FernetCodec(NEW)])
    with WorkflowClient(database_url) as client:
        assert client.retry_workflow(run.id).input[ENCODED] == "fernet"


def test_what_sql_starts_and_sends_is_read_as_it_is(database_url: str) -> None:
    with WorkflowEngine(database_url, workflows=[talk], codec=FernetCodec(NEW)) as engine:
        run_id = value(database_url, "select id from pgworkflows.start_workflow('talk', %s)", json.dumps(CANARY))
        value(database_url, "select id from pgworkflows.trigger_event(%s, 'word', %s)", run_id, json.dumps(CANARY))
        stand_still(engine)
        run = engine.get_run(run_id)
        assert (run.status, run.input, run.output) == (RunStatus.COMPLETED, CANARY, TALKED)
    assert places_of(database_url, CANARY) == {"runs.input", "events.data"}


# Codecs that fail ---------------------------------------------------------------------------------------------------


@workflow("try-child")
def try_child(step: Step, input: str) -> Steps[Any]:
    yield from step.run("before", echo, "fine")
    word = input.replace("-", "")
    try:
        yield from step.invoke_child_workflow("child", child, word)
    except StepFailedError as error:
        return [error.error_type, error.message]


@workflow("try-step")
def try_step(step: Step, input: str) -> Steps[Any]:
    before = yield from step.run("before", echo, "fine")
    try:
        yield from step.run("echo", echo, input.replace("-", ""))
    except StepFailedError as error:
        return [before, error.error_type, error.message]


@workflow("try-error")
def try_error(step: Step, input: str) -> Steps[Any]:
    try:
        yield from step.run("fail", fail, input.replace("-", ""))
    except StepFailedError as error:
        return [error.error_type, "poison" in error.message]


@workflow("try-output")
def try_output(step: Step, input: str) -> Steps[str]:
    yield from step.run("before", echo, "fine")
    return input.replace("-", "")


@workflow("try-failure")
def try_failure(step: Step, input: str) -> Steps[None]:
    yield from step.run("hesitate", hesitate, input.replace("-", "")).retry(attempts=2, wait=0.01)


def test_what_cannot_be_encoded_fails_its_step_and_nobody_else(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    tries = [try_child, try_step, try_error, try_output, try_failure]
    with WorkflowEngine(database_url, workflows=[*tries, child], codec=Choosy()) as engine:
        runs = [engine.start_workflow(each, "poi-son") for each in tries]
        bystanders = engine.start_workflows(child, ["fine"] * 20)
        with working(engine, threads=4):
            ended = {run.workflow_id: engine.wait_for_run(run.id, timeout=30) for run in runs}
            for run in bystanders:
                assert engine.wait_for_run(run.id, timeout=30).status is RunStatus.COMPLETED
        refused = "cannot be stored: codec 'choosy' raised RuntimeError"
        assert ended["try-child"].output == ["SerializationError", f"the input of workflow 'child' {refused}"]
        assert ended["try-step"].output[1:] == ["SerializationError", f"the result of step 'echo' {refused}"]
        assert ended["try-error"].output == ["SerializationError", False]
        assert ended["try-output"].error == {
            "type": "SerializationError",
            "message": f"the output of the workflow {refused}",
            "traceback": None,
            "step_id": None,
        }
        # Its first failure is told without its message; its result, when it comes, cannot be stored either.
        assert ended["try-failure"].error is not None
        assert ended["try-failure"].error["type"] == "SerializationError"
        [hesitated] = engine.get_steps(ended["try-failure"].id)
        assert (hesitated.status, hesitated.attempts) == (StepStatus.FAILED, 2)
    assert places_of(database_url, "poison") == set()
    logged = [record for record in caplog.records if refused in record.getMessage()]
    assert logged
    assert all(record.levelno == logging.ERROR and record.exc_info is None for record in logged)
    assert "poison" not in caplog.text


def test_what_cannot_be_encoded_is_refused_before_anything_is_written(database_url: str) -> None:
    with WorkflowClient(database_url, codec=Choosy()) as client:
        run = client.start_workflow("talk", "fine")
        attempts: list[tuple[str, Callable[[], object]]] = [
            ("the input of workflow 'talk'", lambda: client.start_workflow("talk", "poison")),
            (r"inputs\[1\]: the input of workflow 'talk'", lambda: client.start_workflows("talk", ["fine", "poison"])),
            ("the data of event 'word'", lambda: client.trigger_event(run.id, "word", "poison")),
            ("the data to go on with", lambda: client.fast_forward_workflow(run.id, "poison")),
        ]
        for what, attempt in attempts:
            with pytest.raises(SerializationError, match=f"{what} cannot be stored: codec 'choosy' raised") as raised:
                attempt()
            assert "poison" not in str(raised.value)
            assert isinstance(raised.value.__cause__, RuntimeError)
        assert len(client.get_runs().items) == 1
    assert rows(database_url, "select from pgworkflows.events") == []


@pytest.mark.parametrize(
    ("made", "refusal"),
    [
        (b"bytes", "returned bytes; encode must return text"),
        ("nul \0", "it holds a NUL character"),
        ("\ud800", "it holds a lone surrogate"),
        ("x" * 1000, "it has 1,042 characters, and at most 1,000 can be"),
    ],
)
def test_what_a_codec_makes_must_be_text_that_can_be_stored(
    made: Any, refusal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Odd(Mirror):
        def encode(self, text: str) -> Any:
            return made

    monkeypatch.setattr(payloads, "MAX_JSON_LENGTH", 1000)
    with pytest.raises(SerializationError, match=refusal):
        Payloads(Odd()).seal("1", "the input")


@pytest.mark.parametrize("odd", ["fernet", object(), type("Nameless", (), {"encode": print, "decode": print})()])
def test_what_is_no_codec_is_refused(odd: Any) -> None:
    with pytest.raises(TypeError, match=r"a codec has name, encode and decode|the name of a codec must be"):
        Payloads(odd)


# Envelopes ----------------------------------------------------------------------------------------------------------

ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
MESSAGES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@given(payload=ANY_JSON)
def test_what_is_sealed_is_opened(payload: Any) -> None:
    try:
        text = encode_plain(payload, "it")
    except SerializationError:
        return
    for codec in (Mirror(), ZlibCodec(threshold=0), ZlibCodec()):
        sealed = Payloads(codec).seal(text, "it")
        assert Payloads(None, [codec]).open(sealed) == text
        assert Payloads(codec).shown(parse_json(sealed)) == parse_json(text)
        if sealed not in (text, "null"):
            assert Payloads().shown(parse_json(sealed)) == parse_json(sealed)
            with pytest.raises(Unreadable, match="is not given"):
                Payloads().open(sealed)


@given(message=MESSAGES, traceback=st.none() | MESSAGES, inner=st.none() | MESSAGES)
def test_errors_are_opened_as_they_were(message: str, traceback: str | None, inner: str | None) -> None:
    child = None if inner is None else ChildEnd("a run", "failed", {"type": "E", "message": inner, "traceback": None})
    error = ErrorInfo("Error", message, traceback, "step", child)
    codecs = Payloads(Mirror())
    sealed = codecs.seal_error(error)
    assert (sealed.type, sealed.step_id, sealed.message) == ("Error", "step", "(encoded by 'mirror')")
    assert codecs.open_error(sealed) == error
    assert Payloads().open_error(error) == error


def test_the_mark_of_an_envelope_is_nobody_elses(database_url: str) -> None:
    forged = {ENCODED: "fernet", "data": "x"}
    with WorkflowClient(database_url) as client:
        with pytest.raises(SerializationError, match="holds 'pgworkflows:encoded' as its first key"):
            client.start_workflow("talk", forged)
        run = client.start_workflow("talk", {"as a": forged, "part": [forged]})
        assert client.get_run(run.id).input == {"as a": forged, "part": [forged]}


@pytest.mark.parametrize("data", ["7", '"no JSON', "null"])
def test_an_envelope_that_was_not_made_by_a_codec_is_nobodys(data: str) -> None:
    with pytest.raises(Unreadable, match=r"marked as encoded|cannot decode"):
        Payloads(Mirror()).open(
            f'{{"{ENCODED}":"mirror","data":{data}}}'
            if data != '"no JSON'
            else f'{{"{ENCODED}" : "mirror", "data": "["}}'
        )


def test_compression_leaves_alone_what_is_short() -> None:
    codecs = Payloads(ZlibCodec(threshold=100))
    assert codecs.seal('"short"', "it") == '"short"'
    long = json.dumps("long " * 1000)
    assert len(codecs.seal(long, "it")) < 200


def test_the_example_shows_what_is_stored(database_url: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.encrypted_payloads"],
        cwd=ROOT,
        env={"DATABASE_URL": database_url, "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "with the keys:    Jo has the flu, says Dr. No" in done.stdout
    assert done.stdout.count("'pgworkflows:encoded': 'fernet'") == 2
    assert places_of(database_url, "Jo has") == set()
