"""The Django app: its migrations, settings and checks, the workflows it finds, and its worker."""

from __future__ import annotations

import signal
import subprocess
import threading
from importlib import import_module
from typing import Any

import psycopg
import pytest
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.db import ProgrammingError, connection, connections
from django.db.migrations.exceptions import IrreversibleError
from django.test import override_settings
from djangoing import PROJECT, command, environment, manage, pointed_at, said, set_up
from waiting import until
from working import rows, value

from pgworkflows import ConfigurationError, WorkflowClient, workflow
from pgworkflows.migrate import migrations, plan

set_up()

from shop.models import Order  # noqa: E402  (an app is imported once Django is set up)
from shop.workflows import ship  # noqa: E402

from pgworkflows.contrib.django import engine, start_workflow  # noqa: E402

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
            assert process.wait(30) == 0
        finally:
            process.kill()
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
