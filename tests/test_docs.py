"""The documentation is true: its code runs, its SQL answers, its links lead somewhere, its tests exist."""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from conftest import Databases
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row
from waiting import until
from working import rows, working

import pgworkflows
from pgworkflows import RunStatus, Step, Steps, WorkflowClient, WorkflowEngine, WorkflowRun, workflow
from pgworkflows.runs import TRANSITIONS

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = [README, ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
QUICKSTART = ROOT / "examples" / "quickstart.py"

Row = dict[str, Any]


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


# Blocks of code -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, the line of its first line, and its text."""

    page: Path
    language: str
    line: int
    text: str

    @property
    def name(self) -> str | None:
        """The file that the block is, if its first line is a comment with a file's name."""
        found = re.match(r"# (\w+\.py)\n", self.text)
        return found[1] if found else None

    @property
    def end(self) -> int:
        return self.line + self.text.count("\n")


def blocks(page: Path) -> list[Block]:
    found = re.finditer(r"^```(\w+)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [Block(page, each[1], page.read_text()[: each.start(2)].count("\n") + 1, each[2]) for each in found]


def python_of(page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.language == "python" and block.name is None]


def named(page: Path, name: str) -> str:
    [text] = [block.text for block in blocks(page) if block.name == name]
    return text


END_OF_BLOCK = "\x1e"


def as_script(parts: list[Block]) -> str:
    """The page's code with the line numbers of the page, so that errors point into it."""
    lines: list[str] = []
    for block in parts:
        lines += [""] * (block.line - 1 - len(lines))
        lines += block.text.splitlines()
        lines.append(f"print({END_OF_BLOCK!r}, flush=True)")
    return "\n".join(lines) + "\n"


def claimed_output(block: Block) -> str | None:
    """What the page says the block prints: a text block right after it."""
    lines = block.page.read_text().splitlines()
    for other in blocks(block.page):
        between = lines[block.end : other.line - 2]
        if other.language == "text" and other.line > block.end and not "".join(between).strip():
            return other.text
    return None


def run_python(
    code: str, folder: Path, url: str, *, name: str = "page.py", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a script in a folder of its own, as a reader would."""
    script = folder / name
    script.write_text(code)
    return subprocess.run(
        [sys.executable, str(script)],
        cwd=folder,
        env={**os.environ, "DATABASE_URL": url, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


PAGES_WITH_PYTHON = [page for page in PAGES if python_of(page)]


@pytest.mark.parametrize("page", PAGES_WITH_PYTHON, ids=page_id)
def test_the_python_of_a_page_runs_and_prints_what_the_page_says(page: Path, tmp_path: Path, database_url: str) -> None:
    parts = python_of(page)
    done = run_python(as_script(parts), tmp_path, database_url, name=f"{page.stem}.py")
    assert done.returncode == 0, f"the script's lines are those of {page_id(page)}:\n{done.stderr}"
    printed = done.stdout.split(END_OF_BLOCK + "\n")
    for block, output in zip(parts, printed, strict=False):
        claimed = claimed_output(block)
        if claimed is not None:
            assert output.rstrip() == claimed.rstrip(), f"{page_id(page)}, line {block.line}"


def test_blocks_of_python_have_their_tests() -> None:
    """Files shown on a page are run by a test of their own; this names them."""
    shown = {(page.name, block.name) for page in PAGES for block in blocks(page) if block.name is not None}
    assert shown == {
        ("operations.md", "worker.py"),
        ("operations.md", "release.py"),
        ("testing.md", "conftest.py"),
        ("testing.md", "welcome.py"),
        ("testing.md", "test_welcome.py"),
        ("flask-and-django.md", "web.py"),
        ("flask-and-django.md", "views.py"),
        ("flask-and-django.md", "work.py"),
    }
    assert not {block.language for page in PAGES for block in blocks(page)} - {
        "python", "sql", "text", "sh", "ini", "mermaid"
    }  # fmt: skip


# The first workflow -------------------------------------------------------------------------------------------------


def test_the_first_workflow_of_the_readme_is_the_file() -> None:
    first = python_of(README)[0]
    assert first.text == QUICKSTART.read_text()


def test_the_first_workflow_goes_on_after_it_was_killed(make_directory: Callable[[], Path]) -> None:
    folder = make_directory()
    command = [sys.executable, str(QUICKSTART), "eve@example.com"]
    environment = {name: text for name, text in os.environ.items() if name != "DATABASE_URL"}
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as first:
        assert first.stdout is not None
        assert "making a user" in first.stdout.readline()
        assert "please confirm" in first.stdout.readline()
        first.kill()
    again, once_more = (
        subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True, timeout=60)
        for _ in range(2)
    )
    assert "making a user" not in again.stdout
    assert again.stdout.count("mailing eve@example.com: please confirm") == 1
    assert "completed {'user': 'u-1', 'confirmed': 'noon'}" in again.stdout
    assert "mailing" not in once_more.stdout
    assert "completed" in once_more.stdout
    assert (folder / ".pgworkflows").is_dir()


# Files shown on pages -----------------------------------------------------------------------------------------------


@pytest.fixture
def worker_program(tmp_path: Path, database_url: str) -> Iterator[subprocess.Popen[str]]:
    """The worker of docs/operations.md, at work."""
    script = tmp_path / "worker.py"
    script.write_text(named(DOCS / "operations.md", "worker.py"))
    environment = {**os.environ, "DATABASE_URL": database_url}
    with subprocess.Popen([sys.executable, str(script)], env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            until(
                lambda: rows(database_url, "select id from pgworkflows.workers where pid = %s", process.pid),
                "the worker registers",
            )
            yield process
        finally:
            process.kill()


def test_the_worker_program_uses_four_connections_shows_its_threads_and_ends_on_sigterm(
    worker_program: subprocess.Popen[str], database_url: str
) -> None:
    with WorkflowClient(database_url) as client:
        run = client.start_workflow("nightly")
        assert client.wait_for_run(run.id, timeout="20s").status == "completed"
    open_now = "select pid from pg_stat_activity where application_name = 'pgworkflows' and datname = current_database()"
    until(lambda: len(rows(database_url, open_now)) == 4, "four connections are open")
    worker_program.send_signal(signal.SIGUSR1)
    time.sleep(0.1)  # a signal may overtake the one before it
    worker_program.send_signal(signal.SIGTERM)
    _, said = worker_program.communicate(timeout=20)
    assert worker_program.returncode == 0
    assert 'pgworkflows/dispatcher.py", line' in said


def test_the_release_program_migrates(tmp_path: Path, empty_database_url: str) -> None:
    code = named(DOCS / "operations.md", "release.py")
    first, second = (run_python(code, tmp_path, empty_database_url) for _ in range(2))
    assert "0001_initial" in first.stdout, first.stderr
    assert second.stdout.strip() == "[]", second.stderr


def test_the_suite_on_the_testing_page_passes(tmp_path: Path) -> None:
    for name in ("conftest.py", "welcome.py", "test_welcome.py"):
        (tmp_path / name).write_text(named(DOCS / "testing.md", name))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", ".", "-c", os.devnull, "."],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout


def test_the_flask_application_starts_runs_in_its_own_transactions(tmp_path: Path, database_url: str) -> None:
    rows(database_url, "create table people (email text check (email <> 'nobody@example.com'))")
    visit = """
app.errorhandler(psycopg.Error)(lambda error: ("no", 409))
web = app.test_client()
started = web.post("/sign-ups", data={"email": "ada@example.com"})
print(started.status_code)
print(web.post(f"/sign-ups/{started.json['run']}/confirm").json)
print(web.post("/sign-ups", data={"email": "nobody@example.com"}).status_code)
"""
    done = run_python(named(DOCS / "flask-and-django.md", "web.py") + visit, tmp_path, database_url)
    assert done.stdout.splitlines() == ["202", "{'progress': 0}", "409"], done.stderr
    people = rows(database_url, "select email from people order by email")
    runs = rows(database_url, "select input ->> 'email' from pgworkflows.runs order by 1")
    assert people == runs == [("ada@example.com",)]
    assert rows(database_url, "select name from pgworkflows.events") == [("confirmed",)]


def test_the_flask_application_explains_what_does_not_fit(tmp_path: Path, database_url: str) -> None:
    rows(database_url, "create table people (email text)")
    visit = """
SIGN_UP = workflow_ref("sign-up", input_schema=dict[str, int])
answer = app.test_client().post("/sign-ups", data={"email": "ada@example.com"})
print(answer.status_code, answer.json["problems"][0]["loc"])
"""
    done = run_python(named(DOCS / "flask-and-django.md", "web.py") + visit, tmp_path, database_url)
    assert done.stdout.strip() == "422 ['email']", done.stderr
    assert rows(database_url, "select email from people") == []


def test_the_django_view_and_command_work(tmp_path: Path, database_url: str) -> None:
    server = conninfo_to_dict(database_url)
    settings = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": server["dbname"],
        "USER": server.get("user", ""),
        "PASSWORD": server.get("password", ""),
        "HOST": server.get("host", ""),
        "PORT": str(server.get("port", "")),
    }
    before = f"""
import os, signal, threading
import django
from django.conf import settings
settings.configure(DATABASES={{"default": {settings!r}}}, ALLOWED_HOSTS=["testserver"])
django.setup()
"""
    after = """
from django.test import RequestFactory
response = sign_up_view(RequestFactory().post("/", {"email": "ada@example.com"}))
print(response.status_code)
try:
    with transaction.atomic():
        sign_up_view(RequestFactory().post("/", {"email": "grace@example.com"}))
        raise KeyError
except KeyError:
    pass
run = workflows().get_workflow_last_run("sign-up")
assert run.input == {"email": "ada@example.com"}, run

def watch():
    print(workflows().wait_for_run(run.id, timeout=20).output)
    os.kill(os.getpid(), signal.SIGTERM)

threading.Thread(target=watch).start()
Command().handle()
print("ended")
"""
    page = DOCS / "flask-and-django.md"
    rows(database_url, "create table people (email text)")
    code = before + named(page, "views.py") + "\nsign_up_view = sign_up\n" + named(page, "work.py") + after
    done = run_python(code, tmp_path, database_url)
    assert done.stdout.split() == ["202", "1", "ended"], done.stderr


# SQL ----------------------------------------------------------------------------------------------------------------

NEVER = threading.Event()


def ok() -> str:
    return "ok"


def boom() -> None:
    raise ValueError("no such order")


def unreachable() -> None:
    raise ConnectionError("no route")


@workflow("done")
def done(step: Step, input: dict[str, str]) -> Steps[Any]:
    yield from step.run("first", ok)
    yield from step.wait_for("click", "clicked")
    yield from step.run("last", ok)


@workflow("boom")
def fails(step: Step) -> Steps[Any]:
    yield from step.run("before", ok)
    yield from step.run("boom", boom)


@workflow("late", timeout="100 ms")
def late(step: Step) -> Steps[Any]:
    yield from step.delay("nap", "1 hour")


@workflow("retrying-step")
def retrying_step(step: Step) -> Steps[Any]:
    yield from step.run("call", unreachable).retry(attempts=9, wait="1 hour")


@workflow("retrying-run", retries=9)
def retrying_run(step: Step) -> Steps[Any]:
    yield from step.run("boom", boom)


@workflow("endless")
def endless(step: Step) -> Steps[Any]:
    yield from step.wait_for("answer", "answered")


@workflow("timed")
def timed(step: Step) -> Steps[Any]:
    yield from step.wait_for("answer", "answered", timeout="1 hour")


@workflow("nap")
def nap(step: Step) -> Steps[Any]:
    yield from step.delay("nap", "1 hour")


@workflow("looks")
def looks(step: Step) -> Steps[Any]:
    yield from step.poll("look", lambda: None, interval="1 hour")


@workflow("approval")
def approval(step: Step) -> Steps[Any]:
    yield from step.pause("approve")


@workflow("held")
def held(step: Step, gate: str) -> Steps[Any]:
    yield from step.run("first", ok)
    yield from step.run("hold", GATES[gate].wait, 60)


GATES: dict[str, threading.Event] = {}
STORIES = [done, fails, late, retrying_step, retrying_run, endless, timed, nap, looks, approval]


@dataclass(frozen=True)
class World:
    """A database with runs in every status, one of them in the hands of a worker of this process."""

    url: str
    runs: Mapping[str, UUID]

    def answer(self, sql: str, run: str = "done") -> list[Row]:
        """The rows of a block, with psql's variable set and every "how long ago" at zero."""
        return query(self.url, sql, self.runs[run])

    def names(self, found: list[Row]) -> set[str]:
        """The stories that rows are about."""
        by_id = {run_id: name for name, run_id in self.runs.items()}
        return {by_id[row["run_id"]] for row in found}


def prepared(sql: str, run_id: UUID | None) -> str:
    text = re.sub(r":'run_id'", f"'{run_id}'", sql)
    return re.sub(r"interval '(5 minutes|10 seconds)'", "interval '0'", text)


def query(url: str, sql: str, run_id: UUID | None = None) -> list[Row]:
    with psycopg.connect(url, autocommit=True, row_factory=dict_row) as conn:
        cursor = conn.execute(prepared(sql, run_id).encode())
        return cursor.fetchall() if cursor.description else []


@pytest.fixture(scope="module")
def world(databases: Databases, migrated_template: str) -> Iterator[World]:
    with databases.fresh(migrated_template) as url:
        with WorkflowEngine(url, workflows=STORIES) as engine:
            runs = tell_stories(engine)
        GATES["world"] = threading.Event()
        with WorkflowEngine(url, workflows=[held]) as engine, working(engine, grace="10s"):
            runs["held"] = engine.start_workflow(held, "world").id
            until(lambda: len(engine.get_steps(runs["held"])) == 1, "the held run is in its second step")
            try:
                yield World(url, runs)
            finally:
                GATES["world"].set()


def tell_stories(engine: WorkflowEngine) -> dict[str, UUID]:
    engine.start(worker=False)
    runs: dict[str, WorkflowRun] = {"done": engine.start_workflow(done, {"email": "ada@example.com"})}
    engine.trigger_event(runs["done"].id, "clicked", {"at": "noon"})
    for story in STORIES[1:]:
        runs[story.id] = engine.start_workflow(story)
    runs["stopped"] = engine.start_workflow(endless)
    runs["cancelled"] = engine.start_workflow(nap)
    runs["later"] = engine.start_workflow(nap, delay="1 day")
    worker = engine.worker()
    worker.run_until_idle("20s")
    until(
        lambda: worker.run_until_idle("20s") or engine.get_run(runs["late"].id).status.finished,
        "the late run is out of time",
    )
    engine.pause_workflow(runs["stopped"].id)
    engine.cancel_workflow(runs["cancelled"].id)
    engine.trigger_event(runs["endless"].id, "anserwed")
    with WorkflowClient(engine.conninfo) as client:
        runs["nobodys"] = client.start_workflow("nobodys")
    rows(  # its pause is a second; here it is to last
        engine.conninfo,
        "update pgworkflows.queue set status = 'pending', wake_at = now() + interval '1 hour' where run_id = %s",
        runs["retrying-run"].id,
    )
    return {name: run.id for name, run in runs.items()}


def without_code(page: Path) -> str:
    """The page's words, on the lines where they are."""
    return re.sub(
        r"^```.*?^```$", lambda code: "\n" * code[0].count("\n"), page.read_text(), flags=re.MULTILINE | re.DOTALL
    )


def titled_sql(page: Path) -> dict[str, str]:
    """The SQL blocks of a page by the bold words, or else the heading, above them."""
    text = without_code(page)
    found: dict[str, str] = {}
    for block in blocks(page):
        if block.language == "sql":
            above = "\n".join(text.splitlines()[: block.line - 2])
            *_, title = re.findall(r"^\*\*(.+?)\.?\*\*|^#+ (.+)$", above, re.MULTILINE)
            name = "".join(title)
            while name in found:
                name += " (2)"
            found[name] = block.text
    return found


SQL = titled_sql(DOCS / "sql.md")
OPERATIONS = titled_sql(DOCS / "operations.md")


def test_the_stories_are_in_every_status(world: World) -> None:
    found = query(world.url, "select distinct status from pgworkflows.runs")
    assert {row["status"] for row in found} == set(RunStatus)


def test_every_block_of_sql_is_tested() -> None:
    assert list(SQL) == [
        "Runs per status",
        "How far behind each queue is",
        "The oldest ready runs",
        "Workers alive",
        "What each worker is at",
        "What waits for what",
        "What is being retried",
        "What is stuck",
        "Events that no wait has taken yet",
        "Failures of today",
        "The timeline of a run",
        "Progress",
        "How long steps take",
        "How long runs take",
        "A value inside of results",
        "The operations",
        "The operations (2)",
        "Start a run in a trigger",
        "Tell the run when a row changes",
    ]
    assert list(OPERATIONS) == ["Deploys and migrations", "Connections", "A run is stuck", "Who holds a row", "Growth"]
    others = [page for page in PAGES if page.name not in ("sql.md", "operations.md")]
    assert not [page_id(page) for page in others if titled_sql(page)]


class TestQueries:
    def test_runs_per_status(self, world: World) -> None:
        found = world.answer(SQL["Runs per status"])
        assert {"workflow_id": "nap", "status": "waiting", "runs": 1} in found
        assert {"workflow_id": "nap", "status": "cancelled", "runs": 1} in found
        assert sum(row["runs"] for row in found) == len(world.runs)

    def test_the_lag_of_queues(self, world: World) -> None:
        [row] = world.answer(SQL["How far behind each queue is"])
        assert row.pop("lag").total_seconds() > 0
        assert row == {"queue": "default", "ready": 1, "running": 1, "later": 3, "waiting": 4, "paused": 2}

    def test_the_oldest_ready_runs(self, world: World) -> None:
        [row] = found = world.answer(SQL["The oldest ready runs"])
        assert world.names(found) == {"nobodys"}
        assert row["ready_for"].total_seconds() > 0

    def test_workers_alive(self, world: World) -> None:
        [row] = world.answer(SQL["Workers alive"])
        assert (row["pid"], row["queues"], row["runs_in_hand"]) == (os.getpid(), ["default"], 1)
        assert row["silent_for"].total_seconds() < 10

    def test_what_each_worker_is_at(self, world: World) -> None:
        [row] = found = world.answer(SQL["What each worker is at"])
        assert world.names(found) == {"held"}
        assert (row["pid"], row["last_step"]) == (os.getpid(), "first")
        assert row["quiet_for"].total_seconds() > 0

    def test_what_waits_for_what(self, world: World) -> None:
        found = world.answer(SQL["What waits for what"])
        assert {(row["step_id"], row["kind"], row["event_name"], row["status"]) for row in found} == {
            ("answer", "wait_for", "answered", "waiting"),
            ("answer", "wait_for", "answered", "paused"),
            ("nap", "delay", None, "waiting"),
            ("look", "poll", None, "waiting"),
            ("approve", "pause", None, "paused"),
        }
        assert world.names(found) == {"endless", "stopped", "timed", "nap", "looks", "approval"}

    def test_what_is_being_retried(self, world: World) -> None:
        found = world.answer(SQL["What is being retried"])
        assert world.names(found) == {"retrying-step", "retrying-run"}
        assert {(row["step_id"], row["attempts"], row["error"], row["message"]) for row in found} == {
            ("call", 1, "ConnectionError", "no route"),
            ("boom", 1, "ValueError", "no such order"),
        }

    def test_what_is_stuck(self, world: World) -> None:
        found = world.answer(SQL["What is stuck"])
        reasons = {name: {row["reason"] for row in found if row["run_id"] == run_id} for name, run_id in world.runs.items()}
        assert {name: found for name, found in reasons.items() if found} == {
            "nobodys": {"ready, and nobody claims it"},
            "held": {"in one worker's hands"},
            "stopped": {"paused"},
            "approval": {"paused"},
            "endless": {"waits for an event, without a timeout"},
        }
        with psycopg.connect(world.url, row_factory=dict_row) as conn:  # and rolled back
            conn.execute("update pgworkflows.queue set wake_at = now() - interval '1 hour' where wake_at is not null")
            conn.execute("update pgworkflows.queue set interruptions = 2 where status = 'paused'")
            conn.execute("delete from pgworkflows.workers")
            found = conn.execute(prepared(SQL["What is stuck"], None).encode()).fetchall()
            conn.rollback()
        reasons_now = {row["reason"] for row in found}
        assert {"due, and nobody wakes it", "its worker is gone", "workers died with it 2 times"} <= reasons_now

    def test_events_not_taken(self, world: World) -> None:
        [row] = found = world.answer(SQL["Events that no wait has taken yet"])
        assert world.names(found) == {"endless"}
        assert (row["name"], row["waits_for"]) == ("anserwed", "answered")

    def test_failures_of_today(self, world: World) -> None:
        found = world.answer(SQL["Failures of today"])
        assert {(row["workflow_id"], row["step_id"], row["error"]) for row in found} == {
            ("boom", "boom", "ValueError"),
            ("late", None, "WorkflowTimeoutError"),
        }
        assert "no such order" in {row["message"] for row in found}

    def test_the_timeline_of_a_run(self, world: World) -> None:
        found = world.answer(SQL["The timeline of a run"])
        assert [(row["position"], row["step_id"], row["kind"], row["result"]) for row in found] == [
            (0, "first", "run", "ok"),
            (1, "click", "wait_for", {"at": "noon"}),
            (2, "last", "run", "ok"),
        ]
        assert all(row["after"].total_seconds() >= 0 and row["took"].total_seconds() >= 0 for row in found)
        failed = world.answer(SQL["The timeline of a run"], run="boom")
        assert failed[-1]["result"] == "no such order"

    def test_progress_is_what_check_progress_says(self, world: World) -> None:
        found = {row["run_id"]: row for row in world.answer(SQL["Progress"])}
        assert len(found) == len(world.runs)
        with WorkflowClient(world.url) as client:
            for run_id, row in found.items():
                said = client.check_progress(run_id)
                assert row == {
                    "run_id": run_id,
                    "workflow_id": said.workflow_id,
                    "status": said.status,
                    "completed_steps": said.completed_steps,
                    "total_steps": said.total_steps,
                    "completion_percentage": said.completion_percentage,
                }

    def test_durations(self, world: World) -> None:
        steps = world.answer(SQL["How long steps take"])
        assert {(row["workflow_id"], row["step_id"]) for row in steps} == {
            ("done", "first"), ("done", "last"), ("boom", "before"), ("held", "first")
        }  # fmt: skip
        assert all(row["p95"] >= row["median"] and row["most_attempts"] == 1 for row in steps)
        runs = world.answer(SQL["How long runs take"])
        assert {(row["workflow_id"], row["status"]) for row in runs} == {
            ("done", "completed"), ("boom", "failed"), ("late", "failed"), ("nap", "cancelled")
        }  # fmt: skip
        assert all(row["median_whole"] >= row["median_start"] for row in runs)

    def test_a_value_inside_of_results(self, world: World) -> None:
        [row] = found = world.answer(SQL["A value inside of results"])
        assert world.names(found) == {"done"}
        assert row["email"] == "ada@example.com"

    def test_tables_shown_have_the_columns_of_the_query(self, world: World) -> None:
        shown = 0
        for page in (DOCS / "sql.md", DOCS / "operations.md"):
            for block, following in pairwise(blocks(page)):
                if block.language == "sql" and following.language == "text" and following.line == block.end + 3:
                    shown += 1
                    columns = [name.strip() for name in following.text.splitlines()[0].split("|")]
                    assert list(world.answer(block.text)[0]) == columns
        assert shown

    def test_a_run_at_3_a_m(self, world: World) -> None:
        [row] = world.answer(OPERATIONS["A run is stuck"], run="held")
        assert (row["status"], row["pid"], row["wake_at"]) == ("running", os.getpid(), None)
        [row] = world.answer(OPERATIONS["A run is stuck"], run="endless")
        assert (row["status"], row["wait_event"], row["current_step_id"]) == ("waiting", "answered", "answer")
        [row] = world.answer(OPERATIONS["A run is stuck"], run="boom")
        assert (row["status"], row["error"]) == ("failed", "no such order")

    def test_who_holds_a_row(self, world: World) -> None:
        with psycopg.connect(world.url) as holder, WorkflowClient(world.url) as client:
            client.pause_workflow(world.runs["timed"], connection=holder)
            found = world.answer(OPERATIONS["Who holds a row"])
            assert holder.info.backend_pid in {row["pid"] for row in found}
            holder.rollback()

    def test_connections(self, world: World) -> None:
        found = world.answer(OPERATIONS["Connections"])
        assert sum(row["connections"] for row in found if row["application_name"] == "pgworkflows") >= 4


class TestOperationsInSql:
    def test_a_run_is_started_and_told(self, database_url: str) -> None:
        [started] = query(database_url, SQL["The operations"])
        assert started["status"] == "pending"
        [told] = query(database_url, SQL["The operations (2)"], started["id"])
        assert told == {"status": "pending"}
        assert rows(database_url, "select name, data from pgworkflows.events") == [("paid", {"cents": 1250})]
        assert rows(database_url, "select priority from pgworkflows.runs") == [(100,)]

    def test_triggers_start_runs_and_tell_them(self, database_url: str) -> None:
        @workflow("order")
        def order(step: Step, input: dict[str, int]) -> Steps[Any]:
            paid = yield from step.wait_for("await-payment", "paid")
            return {"order": input["order_id"], "paid": bool(paid["at"])}

        query(database_url, SQL["Start a run in a trigger"])
        query(database_url, SQL["Tell the run when a row changes"])
        with psycopg.connect(database_url) as conn:
            conn.execute("insert into orders (customer) values ('nobody')")
            conn.rollback()
        assert rows(database_url, "select id from pgworkflows.runs") == []
        rows(database_url, "insert into orders (customer) values ('ada')")
        rows(database_url, "update orders set paid_at = now()")
        with WorkflowEngine(database_url, workflows=[order]) as engine:
            engine.worker().run_until_idle("20s")
            [run] = engine.get_runs(resource_id="ada").items
            assert run.output == {"order": run.input["order_id"], "paid": True}
        rows(database_url, "update orders set paid_at = null")
        rows(database_url, "update orders set paid_at = now()")  # the run has ended: no harm is done

    def test_the_sqlstates_are_those_of_the_page(self, database_url: str) -> None:
        text = (DOCS / "sql.md").read_text()
        [(ada,)] = rows(database_url, "select (pgworkflows.start_workflow('a', idempotency_key => 'k')).id")
        rows(database_url, "select pgworkflows.cancel_workflow(%s)", ada)
        refusals = {
            "select pgworkflows.pause_workflow(gen_random_uuid())": ("PW001", "WorkflowRunNotFoundError"),
            f"select pgworkflows.resume_workflow('{ada}')": ("PW002", "InvalidStatusError"),
            "select pgworkflows.start_workflow('b', idempotency_key => 'k')": ("PW003", "IdempotencyConflictError"),
            "select pgworkflows.start_workflow('')": ("22023", "ValueError"),
            "select pgworkflows.start_workflow('a', 'no json')": ("22P02", "SerializationError"),
        }
        for statement, (code, error) in refusals.items():
            with pytest.raises(psycopg.Error) as caught:
                rows(database_url, statement)
            assert caught.value.sqlstate == code
            assert re.search(rf"^\| {code}.*\|.*\| `{error}` \|$", text, re.MULTILINE)

    def test_every_operation_on_the_page_exists_with_these_parameters(self, database_url: str) -> None:
        table = re.findall(r"^\| `(\w+)\(([\w, ]+)\)` \|", (DOCS / "sql.md").read_text(), re.MULTILINE)
        assert len(table) == 7
        found = rows(
            database_url,
            "select p.proname, array_to_string(p.proargnames, ', ') from pg_proc as p"
            " where p.pronamespace = 'pgworkflows'::regnamespace",
        )
        assert set(table) <= set(found)

    def test_the_columns_on_the_page_are_those_of_the_tables(self, database_url: str) -> None:
        text = (DOCS / "sql.md").read_text()
        for table in ("runs", "steps"):
            [listed] = re.findall(rf"^Columns of `{table}`: `(.*?)`\.$", text, re.MULTILINE | re.DOTALL)
            found = rows(
                database_url,
                "select attname from pg_attribute where attrelid = %s::regclass and attnum > 0 order by attnum",
                f"pgworkflows.{table}",
            )
            assert re.split(r",\s+", listed) == [name for (name,) in found]

    def test_the_grants_are_enough_to_start_and_to_work(self, database_url: str) -> None:
        with psycopg.connect(database_url) as conn:  # rolled back: roles belong to the whole server
            conn.execute(re.sub(r"\bapp\b", "pgworkflows_test_app", OPERATIONS["Deploys and migrations"]).encode())
            conn.execute("set local role pgworkflows_test_app")
            conn.execute("select pgworkflows.start_workflow('a')")
            worker = "00000000-0000-0000-0000-000000000001"
            conn.execute(
                "select pgworkflows.register_worker(%s, 'here', 1, '{default}', false, '1 minute')", [worker]
            )
            claimed = conn.execute("select pgworkflows.claim(%s, '{default}', '{a}', 1, true, true)", [worker])
            [(answer,)] = claimed.fetchall()
            assert len(answer["runs"]) == 1
            conn.rollback()

    def test_what_ended_long_ago_can_be_deleted(self, database_url: str) -> None:
        @workflow("two")
        def two(step: Step) -> Steps[Any]:
            yield from step.run("a", ok)
            yield from step.wait_for("b", "go")

        with WorkflowEngine(database_url, workflows=[two]) as engine:
            old, new, waiting = (engine.start_workflow(two).id for _ in range(3))
            engine.trigger_event(old, "go")
            engine.trigger_event(new, "go")
            engine.worker().run_until_idle("20s")
            rows(
                database_url,
                "update pgworkflows.runs set completed_at = now() - interval '91 days' where id = %s",
                old,
            )
            query(database_url, OPERATIONS["Growth"])
            for table, column in (("runs", "id"), ("steps", "run_id")):
                kept = rows(database_url, f"select distinct {column} from pgworkflows.{table}")
                assert {row[0] for row in kept} == {new, waiting}
            assert rows(database_url, "select run_id from pgworkflows.events") == [(new,)]


# What pages say of the code -----------------------------------------------------------------------------------------


def test_the_diagram_of_statuses_shows_the_transitions_and_no_others() -> None:
    [diagram] = [block.text for block in blocks(DOCS / "concepts.md") if block.text.startswith("stateDiagram")]
    drawn = re.findall(r"^\s*(\w+) --> (\w+)", diagram, re.MULTILINE)
    allowed = [(str(status), str(following)) for status, those in TRANSITIONS.items() for following in those]
    assert sorted(drawn) == sorted(allowed)


def test_every_public_name_is_explained() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    assert [name for name in pgworkflows.__all__ if not re.search(rf"\b{name}\b", text)] == []


def test_every_method_of_the_public_classes_is_in_the_reference() -> None:
    text = (DOCS / "reference.md").read_text()
    classes = (pgworkflows.WorkflowEngine, pgworkflows.Worker, pgworkflows.Step)
    methods = {name for each in classes for name in dir(each) if not name.startswith("_") and callable(getattr(each, name))}
    assert sorted(name for name in methods - {"declare_through"} if not re.search(rf"\b{name}\b", text)) == []


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as they are made on the usual hosts."""
    found = re.findall(r"^#+ (.+)$", without_code(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page)):
        if not target.startswith("https://"):
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), target
            assert not anchor or anchor in headings(file), target


def test_every_page_is_linked_from_the_readme_or_the_decisions() -> None:
    linked = set(re.findall(r"\]\(([^)\s#]+)", README.read_text()))
    assert {page_id(page) for page in DOCS.glob("*.md")} <= linked


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_files_and_commands_that_are_named_exist(page: Path) -> None:
    text = page.read_text()
    for name in re.findall(r"`((?:pgworkflows|tests|examples|migrations|bench|scripts)/[\w/.]*)`", text):
        assert (ROOT / name).exists(), name
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make (\w+)", text)) <= targets


def test_the_tests_that_the_guarantees_name_exist() -> None:
    named_there = set(re.findall(r"`(test_\w+\.py)::(test_\w+)`", (DOCS / "guarantees.md").read_text()))
    existing = {
        (file.name, node.name)
        for file in (ROOT / "tests").glob("test_*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    assert named_there
    assert sorted(named_there - existing) == []


def test_the_messages_on_the_page_are_those_that_are_logged() -> None:
    sources = "".join(path.read_text() for path in sorted((ROOT / "pgworkflows").rglob("*.py")))
    said = re.sub(r'"\s*\n\s*f?"', "", sources)
    table = re.findall(r"^\| (?:warning|error) \| `(.+?)` \|", (DOCS / "operations.md").read_text(), re.MULTILINE)
    assert len(table) == 11
    for message in table:
        for part in message.split("…"):
            assert part.strip() in said, message
    calls = re.findall(r"_logger\.(?:warning|error|exception|info)\(", sources)
    assert len(calls) == len(table)
