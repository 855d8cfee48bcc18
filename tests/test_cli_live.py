"""The commands that go on: `tail`, `top`, and `demo`, piped, in a terminal, and while the database is away."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from rich.cells import cell_len
from rich.console import Console
from terminals import Terminal
from waiting import until
from working import children, working

from pgworkflows import Backlog, EmbeddedPostgres, Health, Step, Steps, WorkflowEngine, WorkflowRun, workflow
from pgworkflows import database as database_module
from pgworkflows.cli import following, monitor, picture
from pgworkflows.inspection import Activity, Bucket, Change, Inspector, WorkerInfo, WorkflowActivity

PROGRAM = [sys.executable, "-m", "pgworkflows"]
HOSTILE = "evil \x1b[31m\nname"


@workflow("greet")
def greet(step: Step, input: str) -> Steps[str]:
    yield from step.run("think", str.upper, input)
    if input == "nobody":
        raise LookupError("nobody is there")
    if input == "later":
        yield from step.wait_for("await-go", "go")
    return input


@workflow(HOSTILE)
def hostile(step: Step) -> Steps[None]:
    yield from step.run(HOSTILE, int)


@pytest.fixture
def engine(database_url: str) -> Generator[WorkflowEngine]:
    with WorkflowEngine(database_url, workflows=[greet, hostile]) as engine:
        yield engine


def environment(url: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES", "NO_COLOR"}}
    return {**kept, "DATABASE_URL": url}


class Piped:
    """A command whose output goes to files."""

    def __init__(self, url: str, folder: Path, words: Sequence[object]) -> None:
        name = "-".join(map(str, words))[:40]
        self._out, self._err = folder / f"{name}.out", folder / f"{name}.err"
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                [*PROGRAM, *map(str, words)],
                env=environment(url),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()


@contextmanager
def piped(url: str, folder: Path, *words: object) -> Generator[Piped]:
    found = Piped(url, folder, words)
    try:
        yield found
    finally:
        found.process.kill()
        found.process.wait()


# tail ---------------------------------------------------------------------------------------------------------------


def test_tail_tells_of_all_runs_until_control_c(engine: WorkflowEngine, database_url: str, tmp_path: Path) -> None:
    with (
        working(engine),
        piped(database_url, tmp_path, "tail", "--workflow", "greet") as lines,
        piped(database_url, tmp_path, "tail", "--json") as documents,
    ):

        def both_look_on() -> bool:
            engine.start_workflow(greet, "ada")
            return "completed" in lines.out and "completed" in documents.out

        until(both_look_on, "they tell of runs")
        engine.start_workflow(hostile)
        until(lambda: f"{json.dumps(HOSTILE)[1:-1]}" in documents.out, "they tell of the last")
        failed = engine.start_workflow(greet, "nobody")
        until(lambda: f"{failed.id}  greet  failed (LookupError)" in lines.out, "one tells of the failure")
        until(lambda: documents.out.count(str(failed.id)) >= 3, "so does the other: its start, its step, its end")
        for command in (lines, documents):
            command.process.send_signal(signal.SIGINT)
            assert (command.process.wait(20), command.err) == (0, "")
    assert re.search(rf"^\d\d:\d\d:\d\d\.\d\d\dZ  {failed.id}  greet  started$", lines.out, re.MULTILINE)
    assert re.search(rf"  {failed.id}  greet  think completed \(\d+ ms\)$", lines.out, re.MULTILINE)
    assert "evil" not in lines.out
    told = [json.loads(line) for line in documents.out.splitlines()]
    [*_, start, step, end] = [each for each in told if each["run_id"] == str(failed.id)]
    assert (start["kind"], step["kind"], end["kind"]) == ("run_started", "step", "run_ended")
    assert (step["step_id"], end["status"], end["error_type"]) == ("think", "failed", "LookupError")
    assert HOSTILE in {each["workflow_id"] for each in told}


def test_tail_of_a_run_tells_what_was_and_ends_with_it(
    engine: WorkflowEngine, database_url: str, tmp_path: Path
) -> None:
    with working(engine):
        waiting, failed, odd = engine.start_workflows(greet, ["later", "nobody", "ada"])
        for run in (failed, odd, engine.start_workflow(hostile)):
            odd = engine.wait_for_run(run.id, timeout=20)
        until(lambda: engine.get_run(waiting.id).status == "waiting", "the run waits")
        with (
            piped(database_url, tmp_path, "tail", waiting.id) as looks_on,
            piped(database_url, tmp_path, "tail", failed.id) as looks_back,
            piped(database_url, tmp_path, "tail", odd.id) as looks_at_odd,
            piped(database_url, tmp_path, "tail", uuid4()) as finds_nothing,
        ):
            until(lambda: "await-go waiting" in looks_on.out, "it tells what was")
            assert looks_on.process.poll() is None
            engine.trigger_event(waiting.id, "go")
            assert [each.process.wait(20) for each in (looks_on, looks_back, looks_at_odd, finds_nothing)] == [
                0,
                1,
                0,
                4,
            ]
    words = [line.split("  ")[3].partition(" (")[0] for line in looks_on.out.splitlines()]
    assert words == ["started", "think completed", "await-go waiting", "await-go completed", "completed"]
    assert "failed (LookupError)" in looks_back.out.splitlines()[-1]
    assert "\x1b" not in looks_at_odd.out
    assert looks_at_odd.out.count("evil \\x1b[31m\\nname") == 4
    assert (finds_nothing.out, finds_nothing.err.count("\n")) == ("", 1)


@pytest.fixture
def away(own_server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch) -> Generator[WorkflowEngine]:
    """An engine on a server of the test's own; those who ask it while it is away are told so soon."""
    monkeypatch.setattr(database_module, "POOL_TIMEOUT_S", 0.3)
    monkeypatch.setattr(following, "AGAIN_S", 0.05)
    with WorkflowEngine(own_server.url, workflows=[greet]) as engine:
        engine.migrate()
        yield engine


def test_tail_waits_for_a_server_that_is_away_and_says_so_once(
    away: WorkflowEngine, own_server: EmbeddedPostgres, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[Change] = []
    with working(away):
        run = away.start_workflow(greet, "later")
        until(lambda: away.get_run(run.id).status == "waiting", "the run waits")
    thread = threading.Thread(target=following.follow_run, args=(away, str(run.id), told.append))
    thread.start()
    said = ""

    def has_said(text: str) -> bool:
        nonlocal said
        said += capsys.readouterr().err
        return text in said

    until(lambda: len(told) == 3, "it tells what was")
    os.kill(own_server.pid, signal.SIGINT)
    until(lambda: has_said("the database does not answer, trying again"), "it says so")
    own_server.restart()
    until(lambda: has_said("the database answers again"), "it says that too")
    away.trigger_event(run.id, "go")
    with working(away):
        thread.join(20)
    assert not thread.is_alive()
    assert [each.status for each in told[-2:]] == ["completed", "completed"]
    assert said.count("\n") == 2


def test_tail_says_when_more_has_happened_at_once_than_it_tells(
    engine: WorkflowEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(following, "MOST", 2)
    told: list[Change] = []

    def tell(change: Change) -> None:
        told.append(change)
        if len(told) == 2:
            raise KeyboardInterrupt

    def look_on() -> None:
        with suppress(KeyboardInterrupt):
            following.follow_all(engine, tell)

    thread = threading.Thread(target=look_on)
    thread.start()

    def has_ended() -> bool:
        runs.extend(engine.start_workflows(greet, ["ada"] * 3))
        thread.join(0.2)
        return not thread.is_alive()

    runs: list[WorkflowRun] = []
    until(has_ended, "it tells of two")
    assert capsys.readouterr().err == "more has happened than can be told: lines are left out\n"
    assert [each.run_id for each in told] in [[run.id for run in runs[n + 1 : n + 3]] for n in range(0, len(runs), 3)]


# top ----------------------------------------------------------------------------------------------------------------

NOW = datetime(2030, 1, 31, 12, tzinfo=UTC)


def busy() -> picture.Picture:
    """Much to see, some of it hostile and wide."""
    names = [f"workflow-with-a-rather-long-name-{n}" for n in range(20)] + [HOSTILE, "日本語のワークフロー"]
    second = timedelta(seconds=1)
    return picture.Picture(
        at=NOW,
        health=Health(reachable=True, migrated=True, live_workers=1, queue_lag=90 * second, problems=("all is late",)),
        activity=Activity(
            since=NOW - 300 * second,
            until=NOW,
            width=5 * second,
            bounded=False,
            buckets=[Bucket(NOW - (300 - 5 * n) * second, n, n, n % 2, 0) for n in range(60)],
            workflows=[WorkflowActivity(name, 10, n % 3, n * second, 2 * n * second) for n, name in enumerate(names)],
            steps=[],
        ),
        backlog=[Backlog("default", name, n, 1, 2, 3, 4, n * second) for n, name in enumerate(names)],
        workers=[
            WorkerInfo(UUID(int=n), f"host-{n}", n, ["default"], [], [], NOW, NOW, n > 0, 30 * second, n, False)
            for n in range(5)
        ],
    )


@pytest.mark.parametrize("width", [20, 40, 80, 200])
@pytest.mark.parametrize("height", [5, 12, 24, 60])
def test_the_picture_fits_into_any_terminal(width: int, height: int) -> None:
    out = StringIO()
    Console(file=out, width=width).print(picture.drawn(busy(), width, height, "the server is away", 2.0))
    lines = out.getvalue().splitlines()
    assert len(lines) <= max(height, 7)  # rich cuts what is less than a few lines
    assert max(map(cell_len, lines)) <= width
    assert "\x1b" not in out.getvalue()
    assert lines[0].startswith("no answer since"[:width])
    assert lines[-1].startswith("12:00:00Z, every 2"[: width - 1])


def test_the_picture_shows_the_longest_queues_and_those_that_fail_first() -> None:
    out = StringIO()
    Console(file=out, width=120).print(picture.drawn(busy(), 120, 30))
    text = out.getvalue()
    tables = [part.splitlines() for part in text.split("\n\n")[1:]]
    assert [table[0].split()[0] for table in tables] == ["QUEUE", "ENDED", "WORKER"]
    assert "日本語" in tables[0][1]
    assert re.match(r"evil \\x1b\[31m\\nname +10 +2 +40.0 s +20.0 s$", tables[1][1].rstrip())
    assert re.fullmatch(r"… \d+ more *", tables[0][-1])
    assert "silent" in tables[2][1]
    assert "lag 1 min 30 s" in text
    assert "problem: all is late" in text


def test_a_narrow_picture_leaves_out_what_is_less_urgent_and_cuts_nothing_else() -> None:
    out = StringIO()
    Console(file=out, width=40).print(picture.drawn(busy(), 40))
    counts, rates = (line.rstrip() for line in out.getvalue().splitlines()[:2])
    assert counts == "lag 1 min 30 s   ready 231"
    assert rates == "failed 0.1/s   completed 10.7/s"


def test_top_without_a_terminal_prints_once(engine: WorkflowEngine, database_url: str, tmp_path: Path) -> None:
    with working(engine):
        engine.wait_for_run(engine.start_workflow(greet, "nobody").id, timeout=20)
        waiting = engine.start_workflow(greet, "later")
        until(lambda: engine.get_run(waiting.id).status == "waiting", "it waits")
        with piped(database_url, tmp_path, "top") as lines, piped(database_url, tmp_path, "top", "--json") as document:
            assert (lines.process.wait(20), document.process.wait(20)) == (0, 0)
    assert "workers 1 live" in lines.out
    assert "\x1b" not in lines.out
    assert re.search(r"^greet +1 +1 +", lines.out, re.MULTILINE)
    found = json.loads(document.out)
    assert (found["ok"], found["live_workers"], len(found["workers"])) == (True, 1, 1)
    assert found["backlog"][0]["waiting"] == 1
    assert found["per_second"]["failed"] > 0
    assert found["activity"]["workflows"][0]["failures"] == 1


def test_top_in_a_terminal_follows_its_size_and_leaves_it_clean(engine: WorkflowEngine, database_url: str) -> None:
    with working(engine), Terminal([*PROGRAM, "top", "--every", "200ms"], environment(database_url)) as terminal:
        terminal.shows("workers\x1b[0m 1 live")
        engine.start_workflow(greet, "later")
        terminal.shows("greet")
        assert not terminal.is_as_before()
        terminal.forget()
        terminal.resize(40, 12)
        terminal.shows("q quits")
        frame = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.text.rpartition("\x1b[H")[2])
        assert max(len(line.rstrip("\r")) for line in frame.split("\n")) <= 40
        terminal.types("q")
        assert terminal.end() == 0
        assert terminal.is_as_before()
        assert terminal.text.endswith("\x1b[?25h\x1b[?1049l")  # the cursor is there, the former screen too


@pytest.mark.parametrize("ending", ["control-c", "SIGTERM", "the database is not there"])
def test_top_leaves_the_terminal_clean_however_it_ends(database_url: str, ending: str) -> None:
    url = database_url if ending != "the database is not there" else "postgresql://nobody@127.0.0.1:1/none"
    with Terminal([*PROGRAM, "top"], environment(url)) as terminal:
        if url != database_url:
            assert terminal.end() == 3
            assert terminal.text.count("\n") == 1
            return
        terminal.shows("q quits")
        if ending == "control-c":
            terminal.types("\x03")
        else:
            terminal.process.terminate()
        assert terminal.end() == (0 if ending == "control-c" else 128 + signal.SIGTERM)
        assert terminal.is_as_before()
        assert terminal.text.endswith("\x1b[?25h\x1b[?1049l")


def test_top_goes_on_when_the_server_is_back(away: WorkflowEngine, own_server: EmbeddedPostgres) -> None:
    inspector = Inspector(away)

    def ask() -> picture.Picture:
        return picture.look(inspector, "5 minutes")

    first = ask()
    with monitor.Watch(ask, first, 0.05) as watch:
        until(lambda: watch.picture.at > first.at, "it looks again")
        os.kill(own_server.pid, signal.SIGINT)
        problem = until(lambda: watch.problem, "it says that the database is away")
        own_server.restart()
        until(lambda: watch.problem is None, "it is back")
        again = watch.picture.at
        until(lambda: watch.picture.at > again, "it looks again")
    assert watch.error is None
    assert problem is not None
    assert "connect" in problem


# demo ---------------------------------------------------------------------------------------------------------------


def test_the_demo_shows_a_run_through_a_crash_and_leaves_nothing_behind(tmp_path: Path) -> None:
    done = subprocess.run(
        [*PROGRAM, "demo"],
        cwd=tmp_path,
        env={**environment("postgresql://nobody@127.0.0.1:1/none"), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "charge-card completed (attempt 2" in done.stdout
    assert "was ended by SIGKILL; another starts" in done.stderr
    assert done.stdout.count("reserve completed") == 1
    assert re.search(r"order  completed$", done.stdout, re.MULTILINE)
    assert "taken by Ada" in done.stdout
    assert "What to look at next" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == []


def test_a_demo_that_is_killed_leaves_nothing_behind_either(tmp_path: Path) -> None:
    with piped("", tmp_path, "demo") as demo:
        until(lambda: "was ended by SIGKILL; another starts" in demo.err, "it is under way", within_s=60)
        begun = children(demo.process.pid)
        begun |= {grandchild for child in begun for grandchild in children(child)}
        assert len(begun) >= 3  # the server and its keeper, the supervisor and, perhaps, its next worker
        demo.process.kill()
        demo.process.wait()
        until(lambda: not {pid for pid in begun if Path(f"/proc/{pid}").exists()}, "all have ended")


@pytest.mark.parametrize(
    ("words", "variables", "status", "said"),
    [
        (["--url", "postgresql://db1/shop", "demo"], {}, 2, "the demo has a database of its own"),
        (["demo"], {"PGWORKFLOWS_POSTGRES_BIN": "/nowhere"}, 3, "PGWORKFLOWS_POSTGRES_BIN"),
    ],
)
def test_a_demo_that_cannot_be_given_says_why(
    words: list[str], variables: dict[str, str], status: int, said: str
) -> None:
    done = subprocess.run(
        [*PROGRAM, *words], env={**os.environ, **variables}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == status
    assert said in done.stderr
    assert "Traceback" not in done.stderr
