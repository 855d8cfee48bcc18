"""The Django app: its migrations, settings and checks, the workflows it finds, and its worker."""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
from importlib import import_module
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.apps import apps
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.db import ProgrammingError, connection, connections
from django.db.migrations.exceptions import IrreversibleError
from django.test import override_settings
from djangoing import PROJECT, command, environment, manage, pointed_at, said, set_up
from waiting import until
from working import rows, value, working

from pgworkflows import ConfigurationError, WorkflowClient, workflow
from pgworkflows.migrate import migrations, plan

set_up()

from shop.models import Order  # noqa: E402  (an app is imported once Django is set up)
from shop.workflows import ship  # noqa: E402

from pgworkflows.contrib.django import engine, start_workflow, start_workflows  # noqa: E402
from pgworkflows.contrib.django.models import Run, Step  # noqa: E402

NAMES = [migration.name for migration in migrations()]


# Migrations ---------------------------------------------------------------------------------------------------------


def test_every_migration_has_its_django_migration_after_the_one_before() -> None:
    folder = import_module("pgworkflows.contrib.django.migrations").__path__[0]
    for before, name in zip([None, *NAMES], NAMES, strict=False):
        try:
            module = import_module(f"pgworkflows.contrib.django.migrations.{name}")
        except ModuleNotFoundError:
            pytest.fail(f"add {folder}/{name}.py, as those beside it")
        assert [operation.name for operation in module.Migration.operations] == [name]
        assert module.Migration.dependencies == ([] if before is None else [("pgworkflows", before)])


def test_a_project_migrates_with_djangos_command(empty_database_url: str) -> None:
    with pointed_at(empty_database_url):
        call_command("migrate", verbosity=0)
    recorded = rows(empty_database_url, "select name from django_migrations where app = 'pgworkflows' order by name")
    assert [name for (name,) in recorded] == NAMES
    assert rows(empty_database_url, "select name from pgworkflows.migrations order by number") == recorded
    with WorkflowClient(empty_database_url) as client:
        assert client.migrate() == ()


def test_a_database_that_the_library_has_migrated_needs_only_djangos_record(empty_database_url: str) -> None:
    with WorkflowClient(empty_database_url) as client, pointed_at(empty_database_url):
        client.migrate()
        run = client.start_workflow("before")
        call_command("migrate", verbosity=0)
        assert client.get_run(run.id) == run
    assert value(empty_database_url, "select count(*) from django_migrations where app = 'pgworkflows'") == len(NAMES)


def test_nothing_of_the_library_is_left_for_makemigrations(shop_url: str) -> None:
    call_command("makemigrations", "pgworkflows", check_changes=True, dry_run=True, verbosity=0)


def test_the_schema_has_the_name_that_the_settings_say(empty_database_url: str) -> None:
    name = """some "flows" ü"""
    done = manage(empty_database_url, "migrate", "--run-syncdb", SCHEMA=name)
    said(done)
    code = "from shop.models import Order; Order(name='x').save(); from pgworkflows.contrib.django.models import Run; "
    code += "print(Run.objects.get().workflow_id)"
    assert "ship\n" in said(manage(empty_database_url, "shell", "-c", code, SCHEMA=name))
    with WorkflowClient(empty_database_url, schema=name) as client:
        assert len(client.get_runs().items) == 1


def test_sqlmigrate_prints_what_psql_can_run(empty_database_url: str) -> None:
    with pointed_at(empty_database_url), psycopg.connect(empty_database_url) as conn:
        for name in NAMES:
            conn.execute(str(call_command("sqlmigrate", "pgworkflows", name, stdout=Nowhere())).encode())
    assert plan(empty_database_url) == ()


class Nowhere:
    """Takes what a command prints."""

    def write(self, text: str) -> None:
        pass


def test_a_migration_waits_for_a_lock_in_short_turns(empty_database_url: str) -> None:
    """While it waits for one, it holds none that others would wait for."""
    with pointed_at(empty_database_url):
        call_command("migrate", "pgworkflows", NAMES[0], verbosity=0)
        failures: list[BaseException] = []

        def go_on() -> None:
            try:
                call_command("migrate", "pgworkflows", verbosity=0)
            except BaseException as failure:  # told to the test below
                failures.append(failure)
            finally:
                connection.close()

        with psycopg.connect(empty_database_url) as busy:
            busy.execute("lock table pgworkflows.runs in access share mode")
            thread = threading.Thread(target=go_on)
            thread.start()
            waiting = "select max(waitstart) from pg_locks where relation = 'pgworkflows.runs'::regclass"
            since = until(lambda: value(empty_database_url, waiting), "the migration waits for the lock")
            until(lambda: value(empty_database_url, waiting) not in (None, since), "it has let go, and waits again")
        thread.join(60)
    assert not failures, failures
    assert plan(empty_database_url) == ()


def test_there_is_no_way_back(shop_url: str) -> None:
    with pytest.raises(IrreversibleError):
        call_command("migrate", "pgworkflows", "zero", verbosity=0)
    assert plan(shop_url) == ()


# Settings and checks ------------------------------------------------------------------------------------------------


def problems(**given: Any) -> list[str]:
    with override_settings(**given):
        return [f"{message.id} {message.msg}" for message in run_checks(tags=["pgworkflows"])]


def test_a_project_in_order_has_no_problems_and_needs_no_database() -> None:
    done = manage("postgresql://nowhere.invalid/nothing", "check", "--fail-level", "WARNING")
    assert "no issues" in said(done)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], "it must be a dict, not list"),
        ({"SHEMA": "x"}, "'SHEMA' is unknown: the keys are SCHEMA, PLUGINS,"),
        ({"SCHEMA": "pg_x"}, "'SCHEMA': the schema's name must not start with pg_"),
        ({"SCHEMA": 5}, "'SCHEMA': the schema must be a string"),
        ({"PLUGINS": "a.b"}, "'PLUGINS': it must be a list of dotted paths"),
        ({"PLUGINS": ["nowhere.Plugin"]}, "'PLUGINS': No module named 'nowhere'"),
        ({"PLUGINS": ["builtins.int"]}, "'PLUGINS': a plugin needs a name"),
        ({"CODEC": "builtins.int"}, "'CODEC': "),
        ({"READ_CODECS": "builtins.int"}, "'READ_CODECS': it must be a list"),
        ({"RETENTION": "a while"}, "'RETENTION': "),
        ({"LISTEN_CONNINFO": 5}, "'LISTEN_CONNINFO': it must be a connection string, not int"),
        ({"WORKER": {"treads": 5}}, "'WORKER': treads is no option of Worker"),
        ({"WORKER": 5}, "'WORKER': it must be a dict"),
    ],
)
def test_wrong_settings_are_found_by_a_check(given: Any, expected: str) -> None:
    found = problems(PGWORKFLOWS=given)
    assert [text for text in found if text.startswith("pgworkflows.E001 PGWORKFLOWS: " + expected)], found
    with override_settings(PGWORKFLOWS=given), pytest.raises(ImproperlyConfigured, match="PGWORKFLOWS: "):
        engine()


class Silent:
    name = "silent"


def test_settings_reach_the_engine() -> None:
    silent = f"{__name__}.Silent"
    with override_settings(PGWORKFLOWS={"PLUGINS": [silent], "RETENTION": "3 days", "LISTEN_CONNINFO": "host=x"}):
        made = engine()
        assert [plugin.name for plugin in made.plugins] == ["django-connections", "silent"]
        assert "host=x" in made.listen_conninfo
        assert str(made.retention) == "3 days, 0:00:00"
    assert engine() is engine()
    assert engine() is not made


def test_runs_must_be_written_to_postgresql() -> None:
    lite = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
    connections.settings["lite"] = connections.configure_settings({"default": {}, "lite": lite})["lite"]
    try:
        [found] = problems(DATABASE_ROUTERS=[ToLite()])
        assert found.startswith("pgworkflows.E002 database 'lite', where runs are written, is SQLite, not PostgreSQL")
        call_command("migrate", "pgworkflows", database="lite", verbosity=0)  # does nothing there
    finally:
        connections["lite"].close()
        del connections["lite"], connections.settings["lite"]


class ToLite:
    def db_for_write(self, model: Any, **hints: Any) -> str:
        return "lite"


@workflow("ship")
def another(step: Any) -> Any:
    yield step.delay("wait", 1)


def test_two_workflows_with_one_id_are_found_by_a_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shop.workflows.another", another, raising=False)
    [found] = problems()
    assert found.startswith("pgworkflows.E003 workflow 'ship' is registered already")


def test_the_engine_has_the_workflows_of_the_apps() -> None:
    assert engine().registered["ship"] is ship


# The worker ---------------------------------------------------------------------------------------------------------


def test_the_worker_executes_what_views_and_models_start_and_ends_on_sigterm(shop_url: str) -> None:
    with subprocess.Popen(
        command("pgworkflows", "worker"), cwd=PROJECT, env=environment(shop_url), stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            until(lambda: rows(shop_url, "select id from pgworkflows.workers"), "the worker registers")
            order = Order.objects.create(name="by the worker")
            until(lambda: Order.objects.get(pk=order.pk).shipped, "the order is shipped")
            process.send_signal(signal.SIGTERM)
            said = process.communicate(timeout=30)[1]
            assert process.returncode == 0
        finally:
            process.kill()
    assert re.search(r"pgworkflows: worker \S+ takes runs of \d+ workflows, in queues ", said)
    assert rows(shop_url, "select id from pgworkflows.workers") == []


def test_a_worker_asks_for_migrations_that_are_missing(empty_database_url: str) -> None:
    with pointed_at(empty_database_url):
        with pytest.raises(
            CommandError, match=r"database 'default' lacks 0001_initial, .*: run manage.py migrate first"
        ):
            call_command("pgworkflows", "worker")
        call_command("migrate", verbosity=0)
        with pytest.raises(CommandError, match="threads must lie within"):
            call_command("pgworkflows", "worker", "--threads", "0")


def test_a_worker_is_not_begun_where_there_is_no_server() -> None:
    with pointed_at("postgresql://nobody@127.0.0.1:1/nothing"), pytest.raises(CommandError, match="cannot connect"):
        call_command("pgworkflows", "worker")


def test_a_start_in_a_database_without_the_schema_says_so(empty_database_url: str) -> None:
    with pointed_at(empty_database_url), pytest.raises(ProgrammingError, match="pgworkflows"):
        start_workflow("ship", {"order": 1})
    with pytest.raises(ConfigurationError, match="call migrate"), WorkflowClient(empty_database_url) as client:
        client.start_workflow("ship")


def test_code_that_changes_is_loaded_anew_between_two_steps(shop_url: str, tmp_path: Path) -> None:
    project = shutil.copytree(PROJECT, tmp_path / "project")
    code = project / "shop" / "workflows.py"
    with subprocess.Popen(
        command("pgworkflows", "worker", "--reload"), cwd=project, env=environment(shop_url), stderr=subprocess.PIPE
    ) as process:
        try:
            [first] = until(lambda: rows(shop_url, "select id from pgworkflows.workers"), "it works", within_s=60)
            code.write_text(code.read_text().replace('return {"name": name}', 'return {"name": name, "as": "mended"}'))
            later = "select id from pgworkflows.workers where id <> %s"
            until(lambda: rows(shop_url, later, *first), "a worker with the new code registers", within_s=60)
            order = Order.objects.create(name="reloaded")
            run = engine().get_workflow_last_run("ship")
            assert run is not None
            assert engine().wait_for_run(run.id, timeout="30s").output == {"name": order.name, "as": "mended"}
            code.write_text("this is no Python")
            until(lambda: not rows(shop_url, "select id from pgworkflows.workers"), "the worker ends", within_s=60)
            code.write_text((PROJECT / "shop" / "workflows.py").read_text())
            until(lambda: rows(shop_url, "select id from pgworkflows.workers"), "it works again", within_s=60)
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()
    assert rows(shop_url, "select id from pgworkflows.workers") == []


# Django's connections around steps ----------------------------------------------------------------------------------


@pytest.mark.direct("looks at the sessions of connections")
@pytest.mark.parametrize(("max_age", "steps"), [("0", 1000), ("600", 10_000)])
def test_steps_leave_no_connection_behind(shop_url: str, max_age: str, steps: int) -> None:
    """Each step asks for the process that serves its connection; four threads call them."""
    start_workflows("ask", [{"steps": 250}] * (steps // 250))
    connection.close()
    left = (
        "select count(*) from pg_stat_activity where datname = current_database() and query = 'select pg_backend_pid()'"
    )
    with subprocess.Popen(
        command("pgworkflows", "worker"), cwd=PROJECT, env=environment(shop_url, CONN_MAX_AGE=max_age)
    ) as process:
        try:
            unfinished = "select count(*) from pgworkflows.queue"
            until(lambda: value(shop_url, unfinished) == 0, f"{steps} steps are done", within_s=100)
            assert value(shop_url, "select count(*) from pgworkflows.steps where status = 'completed'") == steps
            assert value(shop_url, left) <= (0 if max_age == "0" else 4)
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()
    used = value(shop_url, "select count(distinct output::text) from pgworkflows.steps")
    assert used == steps if max_age == "0" else used <= 4


def test_asking_for_health_leaves_no_connection_behind(shop_url: str) -> None:
    connection.close()
    assert engine().health().ok
    left = "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
    until(lambda: value(shop_url, left) == 0, "the connection of the thread that asked is closed")


# Commands -----------------------------------------------------------------------------------------------------------


def printed(*arguments: str) -> str:
    out = io.StringIO()
    call_command("pgworkflows", *arguments, stdout=out)
    return out.getvalue()


def test_runs_are_listed_and_shown(shop_url: str) -> None:
    Order.objects.create(name="listed")
    engine().worker().run_until_idle("20s")
    failed = start_workflow("ship", {"order": 0}, resource_id="nobody", idempotency_key="k")
    engine().worker().run_until_idle("20s")
    head, newest, oldest = printed("runs").splitlines()
    assert head.split() == ["RUN", "WORKFLOW", "STATUS", "STEP", "AGE", "ERROR"]
    assert newest.split()[:4] == [str(failed.id), "ship", "failed", "pack"]
    assert oldest.split()[1:4] == ["ship", "completed", "mark-shipped"]
    for filters in (["--status", "failed"], ["--resource", "nobody"], ["--limit", "1"]):
        assert len(printed("runs", *filters).splitlines()) == 2, filters
    assert len(printed("runs", "--workflow", "other").splitlines()) == 1
    shown = printed("show", str(failed.id))
    assert "status    failed\n" in shown
    assert "DoesNotExist: Order matching query does not exist." in shown
    assert "Traceback" not in shown
    with pytest.raises(CommandError, match="was not found"):
        call_command("pgworkflows", "show", "nonsense")


def test_runs_are_cancelled_retried_and_pruned(shop_url: str) -> None:
    first, second = (start_workflow("ship", {"order": 0}) for _ in range(2))
    assert printed("cancel", str(first.id), str(second.id)).splitlines() == [
        f"run {first.id} is cancelled",
        f"run {second.id} is cancelled",
    ]
    with pytest.raises(CommandError, match=f"run {first.id} is cancelled; only .* can be cancelled"):
        call_command("pgworkflows", "cancel", str(first.id))
    assert printed("retry", str(first.id)) == f"run {first.id} is pending\n"
    assert printed("prune", "--older-than", "1 day") == "0 runs deleted\n"
    until(lambda: printed("prune", "--older-than", "0.01 s") == "1 run deleted\n", "the cancelled one is old enough")
    assert [run.id for run in engine().get_runs().items] == [first.id]


def test_the_status_tells_of_workers_and_of_what_is_unfinished(shop_url: str) -> None:
    start_workflow("ship", {"order": 0})
    start_workflow("ship", {"order": 0}, delay="1 hour", queue="later")
    with working(engine()):
        engine().wait_for_run(engine().get_runs(limit=2).items[1].id, timeout="20s")
        workers = printed("workers")
        about, unfinished = printed("status").split("\n\n")
    assert workers.splitlines()[1].split()[2:4] == [str(os.getpid()), "default,mail"]
    assert "workers   1 live" in about.splitlines()
    assert [line.split()[:5] for line in unfinished.splitlines()] == [
        ["QUEUE", "WORKFLOW", "READY", "RUNNING", "LATER"],
        ["later", "ship", "0", "0", "1"],
    ]


def test_migrations_are_planned_and_applied_without_djangos_record(empty_database_url: str) -> None:
    with pointed_at(empty_database_url):
        assert printed("migrate", "--plan").splitlines() == [f"would apply {name}" for name in NAMES]
        assert printed("migrate").splitlines() == [f"applied {name}" for name in NAMES]
        assert printed("migrate", "--plan") == "nothing to apply\n"
        call_command("migrate", verbosity=0)


def test_a_reader_that_has_seen_enough_is_no_error(shop_url: str) -> None:
    shown = shlex.join(command("pgworkflows", "status"))
    done = subprocess.run(
        ["sh", "-c", f"{shown} | (exec <&-; sleep 0.01)"],
        cwd=PROJECT,
        env=environment(shop_url),
        stderr=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert done.stderr == ""


def test_a_command_goes_to_the_database_it_names(shop_url: str, empty_database_url: str) -> None:
    start_workflow("ship", {"order": 0})
    with pointed_at(shop_url, empty_database_url):
        call_command("migrate", database="other", verbosity=0)
        assert len(printed("runs").splitlines()) == 2
        for words in (["runs", "--database", "other"], ["--database", "other", "runs"]):
            assert len(printed(*words).splitlines()) == 1
        run = engine().get_runs().items[0]
        shown = printed("show", str(run.id))
        assert "end it by  manage.py pgworkflows worker --queue default\n" in shown
        assert printed("schedules", "--database", "other") == printed("--database", "other", "schedules")
        with pytest.raises(CommandError, match="workflow 'ship' has no schedule"):
            printed("schedules", "pause", "ship", "--database", "other")


# Models -------------------------------------------------------------------------------------------------------------


def test_models_read_what_is_in_the_tables(shop_url: str) -> None:
    order = Order.objects.create(name="read")
    start_workflow("ship", {"order": 0})
    engine().worker().run_until_idle("20s")
    failed = Run.objects.get(status="failed")
    assert failed.error["type"] == "DoesNotExist"
    [run] = Run.objects.filter(input__order=order.pk, output__name="read").exclude(status="failed")
    assert (run.input, run.output, run.error) == ({"order": order.pk}, {"name": "read"}, None)
    assert [(step.step_id, step.output) for step in run.steps.all()] == [("pack", "read"), ("mark-shipped", 1)]
    assert Run.objects.filter(steps__output="read").get() == run
    assert Step.objects.get(pk=(run.id, "pack")).run == run
    assert engine().get_run(run.id).created_at == run.created_at
    assert set(Run.objects.values_list("output__name", flat=True)) == {"read", None}
    assert "ship" in str(run)


def test_models_have_the_columns_of_their_tables(shop_url: str) -> None:
    for model in apps.get_app_config("pgworkflows").get_models():
        assert list(model.objects.all()) == []
        assert not model._meta.managed


def test_models_change_nothing(shop_url: str) -> None:
    start_workflow("ship", {"order": 0})
    run = Run.objects.get()
    for change in (
        run.save,
        run.delete,
        lambda: Run.objects.update(status="completed"),
        lambda: Run.objects.all().delete(),
        lambda: Run.objects.create(id=run.id),
        lambda: Run.objects.bulk_create([run]),
    ):
        with pytest.raises(TypeError, match="only read through models"):
            change()
    assert Run.objects.get().status == "pending"
