"""The Flask extension: its configuration, several applications, step functions in the application context, starts in
Flask-SQLAlchemy's transactions, requests' idempotency keys, and its commands as a shell runs them."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from click.testing import Result
from flask import Flask, Response, current_app, g
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from waiting import until
from werkzeug.test import TestResponse
from working import rows, value

from pgworkflows import ConfigurationError, Step, Steps, WorkflowEngine, WorkflowNotFoundError, workflow, workflow_ref
from pgworkflows.contrib.flask import PgWorkflows, idempotency_key

ROOT = Path(__file__).parents[1]


class Base(DeclarativeBase):
    pass


db = SQLAlchemy(model_class=Base)


class Note(db.Model):  # type: ignore[name-defined,misc]  # Flask-SQLAlchemy makes the class of the base
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(unique=True)


def note(text: str) -> Note:
    row = Note()
    row.text = text
    return row


def name_of_the_application() -> str:
    return current_app.name


@workflow("which")
def which(step: Step) -> Steps[str]:
    return (yield from step.run("ask", name_of_the_application))


def made(name: str, url: str, workflows: PgWorkflows, **config: Any) -> Flask:
    """An application factory."""
    app = Flask(name)
    app.config.update(PGWORKFLOWS_DATABASE_URL=url, TESTING=True, **config)
    workflows.init_app(app)
    return app


def work(app: Flask) -> None:
    app.extensions["pgworkflows"].worker().run_until_idle(timeout=20)


def close(*apps: Flask) -> None:
    for app in apps:
        app.extensions["pgworkflows"].close()


# Applications -------------------------------------------------------------------------------------------------------


def test_each_application_has_an_engine_of_its_own_and_its_steps_run_in_its_context(
    database_url: str, empty_database_url: str
) -> None:
    workflows = PgWorkflows(workflows=[which])
    first = made("first", database_url, workflows)
    second = made("second", empty_database_url, workflows, PGWORKFLOWS_SCHEMA="other")
    for app in (first, second):
        with app.app_context():
            assert workflows.engine is app.extensions["pgworkflows"]
            workflows.engine.migrate()
            run = workflows.engine.start_workflow(which)
            workflows.worker().run_until_idle(timeout=20)
            assert workflows.engine.get_run(run.id).output == app.name
    assert value(database_url, "select count(*) from pgworkflows.runs") == 1
    assert value(empty_database_url, "select count(*) from other.runs") == 1
    with pytest.raises(RuntimeError, match="application context"):
        _ = workflows.engine
    close(first, second)


def test_an_application_that_was_given_at_once_needs_no_init_app(database_url: str) -> None:
    app = Flask("at-once")
    app.config["PGWORKFLOWS_DATABASE_URL"] = database_url
    workflows = PgWorkflows(app, workflows=[which])
    with app.app_context():
        run = workflows.engine.start_workflow(which)
    work(app)
    assert app.extensions["pgworkflows"].get_run(run.id).output == "at-once"
    with pytest.raises(ConfigurationError, match="call init_app once"):
        workflows.init_app(app)
    close(app)


def test_workflows_can_be_added_where_the_application_is_made(database_url: str) -> None:
    app = Flask("later")
    app.config["PGWORKFLOWS_DATABASE_URL"] = database_url
    workflows = PgWorkflows()
    workflows.init_app(app, workflows=[which])
    assert set(app.extensions["pgworkflows"].registered) == {"which"}
    with app.app_context():
        assert workflows.engine.start_workflow(workflow_ref("elsewhere")).workflow_id == "elsewhere"
        with pytest.raises(WorkflowNotFoundError):
            workflows.engine.start_workflow("elsewhere")
    close(app)


def test_an_application_without_pgworkflows_is_told_so() -> None:
    app = Flask("bare")
    with app.app_context(), pytest.raises(RuntimeError, match="'bare' has no pgworkflows: call init_app"):
        _ = PgWorkflows().engine


def test_the_configuration_is_read_with_its_prefix(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASK_PGWORKFLOWS_THREADS", "3")
    app = Flask("configured")
    app.config.from_prefixed_env()
    app.config.update(
        PGWORKFLOWS_DATABASE_URL=database_url, PGWORKFLOWS_QUEUES=["mail"], PGWORKFLOWS_RETENTION="3 days"
    )
    workflows = PgWorkflows(app)
    engine = app.extensions["pgworkflows"]
    assert engine.retention.days == 3
    workflows.start(app, lease="10s")
    try:
        [(queues, lease)] = until(
            lambda: rows(database_url, "select queues, extract(epoch from lease)::int from pgworkflows.workers"),
            "the worker registers",
        )
        assert (queues, lease) == (["mail"], 10)
        assert sum(thread.name.startswith("pgworkflows-step") for thread in threading.enumerate()) == 3
    finally:
        workflows.stop(app)
    assert rows(database_url, "select id from pgworkflows.workers") == []
    close(app)


def test_a_setting_that_nobody_reads_is_refused() -> None:
    app = Flask("misspelt")
    app.config["PGWORKFLOWS_TRHEADS"] = 3
    with pytest.raises(ConfigurationError, match=r"PGWORKFLOWS_TRHEADS is no setting .* PGWORKFLOWS_THREADS"):
        PgWorkflows(app)


def test_without_a_database_of_its_own_it_uses_flask_sqlalchemys(database_url: str) -> None:
    for driver in ("postgresql+psycopg", "postgresql+psycopg2"):
        app = Flask("shared")
        app.config["SQLALCHEMY_DATABASE_URI"] = database_url.replace("postgresql", driver)
        PgWorkflows(app)
        with app.extensions["pgworkflows"] as engine:
            assert engine.start_workflow(workflow_ref("any")).workflow_id == "any"
    assert value(database_url, "select count(*) from pgworkflows.runs") == 2


def test_an_application_of_another_database_does_not_lend_it(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    app = Flask("lite")
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
    PgWorkflows(app)
    assert app.extensions["pgworkflows"].conninfo == WorkflowEngine(database_url).conninfo


# Flask-SQLAlchemy ---------------------------------------------------------------------------------------------------


class Form:
    """An application with a database, whose pages write a row and start a run."""

    def __init__(self, url: str, driver: str) -> None:
        self.url = url
        self.app = Flask("form")
        self.app.config.update(
            SQLALCHEMY_DATABASE_URI=url.replace("postgresql://", f"postgresql+{driver}://"), TESTING=True
        )
        db.init_app(self.app)
        self.workflows = PgWorkflows(self.app, workflows=[file_note, fail_after_writing, which])
        with self.app.app_context():
            db.create_all()

    @property
    def engine(self) -> WorkflowEngine:
        engine = self.app.extensions["pgworkflows"]
        assert isinstance(engine, WorkflowEngine)
        return engine

    def page(self, act: Callable[[], Any]) -> TestResponse:
        """What a request is answered whose view does this."""

        def view() -> Any:
            answer = act()
            return answer if isinstance(answer, (str, dict, Response)) else ""

        self.app.view_functions["page"] = view
        if not any(rule.endpoint == "page" for rule in self.app.url_map.iter_rules()):
            self.app.add_url_rule("/page", "page", view, methods=["POST"])
        self.app.config["PROPAGATE_EXCEPTIONS"] = False
        return self.app.test_client().post("/page")

    def notes(self) -> list[str]:
        return [text for (text,) in rows(self.url, "select text from notes order by text")]

    def runs(self) -> list[str]:
        return [text for (text,) in rows(self.url, "select input #>> '{}' from pgworkflows.runs order by 1")]

    def start(self, text: str, **options: Any) -> UUID:
        run = self.engine.start_workflow(file_note, text, connection=db.session, **options)
        return run.id

    def start_in_vain(self) -> None:
        """In a savepoint that a row of the application's rolls back, for it is there already."""
        savepoint = db.session.begin_nested()
        self.start("refused")
        db.session.add(note("kept"))
        with pytest.raises(IntegrityError):
            savepoint.commit()
        savepoint.rollback()


def write_note(text: str) -> int:
    db.session.add(note(text))
    db.session.commit()
    g.seen = getattr(g, "seen", 0) + 1
    return int(g.seen)


@workflow("file-note")
def file_note(step: Step, input: str) -> Steps[list[int]]:
    first = yield from step.run("first", write_note, f"{input} 1")
    second = yield from step.run("second", write_note, f"{input} 2")
    return [first, second]


def write_and_forget(text: str) -> None:
    db.session.add(note(text))
    db.session.flush()


def write_and_fail(text: str) -> None:
    write_and_forget(text)
    raise LookupError(text)


def count_notes() -> int:
    return db.session.query(Note).count()


@workflow("fail-after-writing")
def fail_after_writing(step: Step) -> Steps[int]:
    yield from step.run("forget", write_and_forget, "forgotten")
    try:
        yield from step.run("fail", write_and_fail, "failed")
    except Exception:
        step.context.logger.info("as it should")
    return (yield from step.run("count", count_notes))


@pytest.fixture(params=["psycopg", "psycopg2"])
def form(request: pytest.FixtureRequest, database_url: str) -> Iterator[Form]:
    form = Form(database_url, request.param)
    yield form
    with form.app.app_context():
        db.engine.dispose()
    close(form.app)


def test_a_start_in_the_session_is_there_once_it_commits(form: Form) -> None:
    def act() -> None:
        db.session.add(note("kept"))
        form.start("kept")
        assert form.runs() == []
        db.session.commit()

    assert form.page(act).status_code == 200
    assert form.notes() == ["kept"]
    assert form.runs() == ["kept"]


def test_a_start_in_the_session_goes_with_its_rollback(form: Form) -> None:
    def act() -> None:
        db.session.add(note("lost"))
        form.start("lost")
        db.session.rollback()
        form.start("after it")
        db.session.commit()

    assert form.page(act).status_code == 200
    assert (form.notes(), form.runs()) == ([], ["after it"])


def test_a_view_that_raises_or_does_not_commit_starts_nothing(form: Form) -> None:
    def fail() -> None:
        form.start("raised")
        db.session.add(note("raised"))
        db.session.flush()
        raise KeyError("no")

    assert form.page(fail).status_code == 500
    assert form.page(lambda: form.start("not committed")).status_code == 200
    assert (form.notes(), form.runs()) == ([], [])


def test_a_savepoint_takes_the_start_within_it_along(form: Form) -> None:
    def act() -> None:
        with db.session.begin_nested():
            db.session.add(note("kept"))
            form.start("kept")
        with db.session.begin_nested() as savepoint:
            form.start("rolled back")
            savepoint.rollback()
        form.start_in_vain()
        db.session.commit()

    assert form.page(act).status_code == 200
    assert (form.notes(), form.runs()) == (["kept"], ["kept"])


def test_a_refused_start_leaves_the_session_usable(form: Form) -> None:
    def act() -> None:
        form.start("first", idempotency_key="k")
        for wrong in (5, None):
            with pytest.raises(Exception, match="input"):
                form.engine.start_workflow(file_note, wrong, connection=db.session)
        with pytest.raises(Exception, match="'k' is taken"):
            form.engine.start_workflow(which, idempotency_key="k", connection=db.session)
        db.session.add(note("kept"))
        db.session.commit()

    assert form.page(act).status_code == 200
    assert (form.notes(), form.runs()) == (["kept"], ["first"])


def test_each_step_has_a_context_and_a_session_of_its_own(form: Form) -> None:
    run = form.engine.start_workflow(file_note, "note")
    with form.app.app_context():
        g.seen = 10  # of another context
        work(form.app)
    assert form.engine.get_run(run.id).output == [1, 1]
    assert form.notes() == ["note 1", "note 2"]


def test_the_session_is_removed_after_each_step_also_after_one_that_fails(form: Form) -> None:
    run = form.engine.start_workflow(fail_after_writing)
    work(form.app)
    assert form.engine.get_run(run.id).output == 0
    assert form.notes() == []
    in_transaction = (
        "select count(*) from pg_stat_activity where datname = current_database() and starts_with(state, 'idle in')"
    )
    assert value(form.url, in_transaction) == 0


def test_a_session_that_cannot_be_removed_loses_no_result(form: Form, caplog: pytest.LogCaptureFixture) -> None:
    faults = [OSError("torn")]

    @form.app.teardown_appcontext
    def fail(_error: BaseException | None) -> None:
        if faults:
            raise faults.pop()

    run = form.engine.start_workflow(which)
    work(form.app)
    assert form.engine.get_run(run.id).output == "form"
    assert "plugin flask raised in wrap_step around step 'ask'" in caplog.text


# Idempotency keys ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "key"),
    [
        ("8e03978e-40d5", "pay/7/8e03978e-40d5"),
        ('"8e03978e-40d5"', "pay/7/8e03978e-40d5"),
        (" a b ", "pay/7/a b"),
        (None, None),
        ("", None),
        ('"', 'pay/7/"'),
        ("k" * 250, "pay/7/" + "k" * 250),
    ],
)
def test_the_header_of_a_request_is_the_key(sent: str | None, key: str | None) -> None:
    app = Flask("keys")
    app.add_url_rule("/", "pay", lambda: {"key": idempotency_key(7)}, methods=["POST"])
    headers = {} if sent is None else {"Idempotency-Key": sent}
    assert app.test_client().post("/", headers=headers).json == {"key": key}


@pytest.mark.parametrize("sent", ["k" * 251, '""', "a\tb"])
def test_a_header_that_can_be_no_key_is_a_bad_request(sent: str) -> None:
    app = Flask("keys")
    app.add_url_rule("/", "pay", lambda: {"key": idempotency_key(7)}, methods=["POST"])
    answer = app.test_client().post("/", headers={"Idempotency-Key": sent})
    assert answer.status_code == 400
    assert "Idempotency-Key must have 1 to 250 printable characters" in answer.text


def test_no_callers_key_is_another_callers() -> None:
    app = Flask("keys")
    keys = set()
    for scope, sent in (("1", "2/a"), ("1/2", "a"), ("1%2F2", "a"), ("", "1/2/a")):
        with app.test_request_context("/", headers={"Idempotency-Key": sent}):
            keys.add(idempotency_key(scope))
    assert len(keys) == 4


def test_a_key_may_be_asked_for_in_another_header_and_be_required() -> None:
    app = Flask("keys")
    app.add_url_rule("/", "hook", lambda: {"key": idempotency_key(header="X-Event-Id", required=True)})
    browser = app.test_client()
    assert browser.get("/", headers={"X-Event-Id": "e1"}).json == {"key": "hook//e1"}
    answer = browser.get("/", headers={"Idempotency-Key": "e1"})
    assert (answer.status_code, "X-Event-Id is missing" in answer.text) == (400, True)


# Commands -----------------------------------------------------------------------------------------------------------

SITE = """
from flask import Flask, current_app
from pgworkflows import workflow
from pgworkflows.contrib.flask import PgWorkflows


@workflow("which")
def which(step):
    return (yield step.run("ask", lambda: current_app.name))


def create_app():
    app = Flask(__name__)
    app.config.from_prefixed_env()
    PgWorkflows(app, workflows=[which])
    return app
"""


class Shell:
    """`flask pgworkflows …` of an application, in this process and in one of its own."""

    def __init__(self, folder: Path, url: str) -> None:
        self._folder = folder
        self._url = url

    def run(self, *words: str) -> Result:
        app = Flask("site_of_mine")
        app.config["PGWORKFLOWS_DATABASE_URL"] = self._url
        PgWorkflows(app, workflows=[which])
        try:
            return app.test_cli_runner().invoke(args=["pgworkflows", *words])
        finally:
            close(app)

    def start(self, *words: str) -> subprocess.Popen[str]:
        (self._folder / "site_of_mine.py").write_text(SITE)
        return subprocess.Popen(
            [sys.executable, "-m", "flask", "--app", "site_of_mine", "pgworkflows", *words],
            cwd=self._folder,
            env={**os.environ, "DATABASE_URL": self._url},
            stderr=subprocess.PIPE,
            text=True,
        )

    def completes(self, words: str) -> list[str]:
        """What a shell is offered for the last of these words."""
        (self._folder / "site_of_mine.py").write_text(SITE)
        asked = {
            "_FLASK_COMPLETE": "bash_complete",
            "COMP_WORDS": f"flask {words}",
            "COMP_CWORD": str(words.count(" ") + 1),
        }
        done = subprocess.run(
            [sys.executable, "-c", "from flask.cli import cli; cli(prog_name='flask')"],
            cwd=self._folder,
            env={**os.environ, **asked, "DATABASE_URL": self._url, "FLASK_APP": "site_of_mine"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stderr == ""
        return [line.removeprefix("plain,") for line in done.stdout.splitlines()]


@pytest.fixture
def shell(tmp_path: Path, database_url: str) -> Shell:
    return Shell(tmp_path, database_url)


def test_the_worker_of_a_shell_works_and_ends_gracefully(shell: Shell, database_url: str) -> None:
    with WorkflowEngine(database_url) as engine:
        run = engine.start_workflow(workflow_ref("which"))
        options = ("--threads", "2", "--queue", "default", "--queues", "quick, slow", "--lease", "10s")
        with shell.start("worker", *options) as process:
            try:
                assert engine.wait_for_run(run.id, timeout=20).output == "site_of_mine"
                assert rows(
                    database_url, "select queues, lease::text from pgworkflows.workers where pid = %s", process.pid
                ) == [(["default", "quick", "slow"], "00:00:10")]
                process.send_signal(signal.SIGTERM)
                said = process.communicate(timeout=20)[1]
            finally:
                process.kill()
    assert process.returncode == 0, said
    assert re.search(r"INFO pgworkflows: worker \S+ takes runs of 1 workflows, in queues default, quick, slow\n", said)


def test_the_words_of_the_commands_are_completed(shell: Shell, database_url: str) -> None:
    with WorkflowEngine(database_url, workflows=[which]) as engine:
        engine.start(worker=False)
        engine.worker().run_until_idle("30s")  # it declares the workflow
        run = engine.start_workflow(which)
    for words, found in {
        "pgworkflows sta": ["status", "start"],
        "pgworkflows runs --status pa": ["paused"],
        "pgworkflows start ": ["which"],
        f"pgworkflows show {str(run.id)[:13]}": [str(run.id)],
    }.items():
        assert shell.completes(words) == found


def test_the_commands_show_and_steer(shell: Shell, database_url: str) -> None:
    with WorkflowEngine(database_url, workflows=[which]) as engine:
        lost, kept = (engine.start_workflow(which, resource_id=owner) for owner in ("ada", "bob"))
        listed = shell.run("runs", "--resource", "ada", "--status", "pending")
        assert listed.exit_code == 0, listed.output
        assert [line.split()[:3] for line in listed.stdout.splitlines()[1:]] == [[str(lost.id), "which", "pending"]]
        shown = shell.run("show", str(lost.id)).stdout
        assert re.search(r"^end it by  \S+ pgworkflows worker --queue default$", shown, re.MULTILINE)
        assert shell.run("demo").exit_code == 2
        assert shell.run("cancel", str(lost.id)).stdout == f"run {lost.id} is cancelled\n"
        refused = shell.run("cancel", str(lost.id))
        assert (refused.exit_code, refused.stdout) == (1, "")
        assert refused.stderr.startswith(f"Error: run {lost.id} is cancelled; only ")
        assert shell.run("retry", str(lost.id)).stdout == f"run {lost.id} is pending\n"
        status = shell.run("status", "--min-workers", "1")
        assert status.exit_code == 1
        assert "problem   live workers of the workflow that fewest have: 0; at least 1 are wanted" in status.stdout
        assert status.stdout.splitlines()[-1].split() == ["default", "which", "2", "0", "0", "0", "0"]
        found = json.loads(shell.run("status", "--json").stdout)
        assert (found["ok"], found["migrated"], found["live_workers"]) == (True, True, 0)
        engine.cancel_workflow(lost.id)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            assert f"the probe cannot listen on {port}: " in shell.run("worker", "--probe", f"{port}").output
        assert "'nowhere' is no port, nor host:port" in shell.run("worker", "--probe", "nowhere").output
        engine.cancel_workflow(kept.id)
        assert shell.run("prune", "--older-than", "1 microsecond").stdout == "2 runs deleted\n"
        gone = shell.run("show", str(kept.id))
        assert (gone.exit_code, gone.stderr) == (4, f"Error: run {kept.id} was not found\n")


def test_the_command_that_shows_a_run_shows_its_steps(form: Form) -> None:
    run = form.engine.start_workflow(fail_after_writing)
    work(form.app)
    shown = form.app.test_cli_runner().invoke(args=["pgworkflows", "show", str(run.id)])
    assert shown.exit_code == 0, shown.output
    head, _, steps = shown.output.partition("\n\n")
    assert "workflow  fail-after-writing" in head.splitlines()
    assert "output    0" in head.splitlines()
    assert [line.split()[:3] for line in steps.splitlines()[1:]] == [
        ["forget", "run", "completed"],
        ["fail", "run", "failed"],
        ["count", "run", "completed"],
    ]
    assert "LookupError: failed" in steps


def test_the_command_that_migrates_says_what_it_does(tmp_path: Path, empty_database_url: str) -> None:
    shell = Shell(tmp_path, empty_database_url)
    planned = shell.run("migrate", "--plan").stdout.splitlines()
    assert planned[0] == "would apply 0001_initial"
    status = shell.run("status")
    assert (status.exit_code, "schema    not migrated" in status.stdout) == (3, True)
    assert shell.run("migrate").stdout.splitlines() == [line.replace("would apply", "applied") for line in planned]
    assert shell.run("migrate").stdout == "nothing to apply\n"
