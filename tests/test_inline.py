"""Inline mode: what views start is driven in their thread, in transactions that are committed, and in those that never
are: Django's TestCase, and a connection that a test rolls back."""

from __future__ import annotations

import io
import threading
import unittest
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from django.core.management import call_command
from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.test import Client, TestCase, TransactionTestCase, override_settings
from django.urls import path
from django.utils import timezone
from djangoing import set_up
from flask import Flask
from pages import DOCS, named
from working import rows, value

from pgworkflows import ConfigurationError, Step, Steps, WorkflowEngine, workflow
from pgworkflows.testing import inline, make_clock_movable

set_up()

from shop.models import Order  # noqa: E402  (an app is imported once Django is set up)

from pgworkflows.contrib.django import engine as django_engine  # noqa: E402
from pgworkflows.contrib.django import start_workflow  # noqa: E402

STARTED = "select count(*) from pgworkflows.runs"


@workflow("greet")
def greet(step: Step, name: str) -> Steps[str]:
    greeting = yield from step.run("greet", lambda: f"hello {name}")
    reply = yield from step.wait_for("reply", "replied", timeout="3 days")
    return f"{greeting}, {reply}"


@workflow("nightly", schedule="0 3 * * *")
def nightly(step: Step) -> Steps[None]:
    yield from step.run("look back", lambda: None)


def plain(url: str) -> WorkflowEngine:
    return WorkflowEngine(url, workflows=[greet])


class TestAnEngine:
    def test_a_start_returns_when_its_run_waits(self, pgworkflows_url: str) -> None:
        with plain(pgworkflows_url) as engine:
            with inline(engine) as workflows:
                started = engine.start_workflow(greet, "Ada")
                assert engine.get_run(started.id).status == "waiting"
                engine.trigger_event(started.id, "replied", {"by": "me"})
                assert engine.wait_for_run(started.id).output == "hello Ada, {'by': 'me'}"
                other = engine.start_workflow(greet, "Eve")
                workflows.travel("3 days")
                workflows.run(other.id).assert_completed("hello Eve, None")
                workflows.run(other.id).assert_step_ran_once("greet")
            after = engine.start_workflow(greet, "Bob")
            assert engine.get_run(after.id).status == "pending", "nothing is driven after the block"
            assert rows(engine.conninfo, "select id from pgworkflows.workers") == []

    def test_what_a_transaction_has_started_is_driven_at_the_end(self, pgworkflows_url: str) -> None:
        with plain(pgworkflows_url) as engine, psycopg.connect(pgworkflows_url) as conn:
            with inline(engine) as workflows:
                run = workflows.run(engine.start_workflow(greet, "Ada", connection=conn).id)
                conn.commit()
            run.assert_waiting_for("replied")

    def test_a_step_that_starts_or_wakes_another_run_sees_it_driven_afterwards(self, pgworkflows_url: str) -> None:
        with plain(pgworkflows_url) as engine, inline(engine) as workflows:

            @workflow("outer")
            def outer(step: Step) -> Steps[str]:
                other = yield from step.run("start", lambda: str(engine.start_workflow(greet, "Eve").id))
                yield from step.run("reply", lambda: str(engine.trigger_event(other, "replied").id))
                return other

            engine.register_workflow(outer)
            found = engine.get_run(engine.start_workflow(outer).id)
            workflows.run(found.output).assert_completed("hello Eve, {}")

    def test_an_error_of_the_block_comes_out_as_it_is(self, pgworkflows_url: str) -> None:
        with plain(pgworkflows_url) as engine:
            with pytest.raises(LookupError, match="the test's"), inline(engine):
                raise LookupError("the test's")
            run = engine.start_workflow(greet, "Ada")
            assert engine.get_run(run.id).status == "pending"

    def test_on_a_connection_that_is_rolled_back_nothing_remains(self, pgworkflows_url: str) -> None:
        with plain(pgworkflows_url) as engine, psycopg.connect(pgworkflows_url) as conn:
            with inline(engine, connection=conn) as workflows:
                started = engine.start_workflow(greet, "Ada", connection=conn)
                run = workflows.run(started.id)
                workflows.run_until_idle()
                run.assert_waiting_for("replied")
                workflows.travel("2 days")
                run.assert_waiting_for("replied")
                workflows.travel("1 day")
                run.assert_completed("hello Ada, None")
                workflows.crash_before_checkpoint("greet")
                again = workflows.start(greet, "Eve")
                again.assert_step_ran("greet", times=2)
                again.send("replied")
                again.assert_completed()
                assert value(pgworkflows_url, STARTED) == 0
            conn.rollback()
            assert value(pgworkflows_url, STARTED) == 0
            with inline(engine) as workflows:
                assert abs((workflows.now() - started.created_at).total_seconds()) < 60, "the clock is set back as well"


class TestFlask:
    def test_what_a_view_has_started_waits_before_its_response_is_here(self, pgworkflows_url: str) -> None:
        app = Flask("greeting")
        engine = plain(pgworkflows_url)

        @app.post("/greet/<name>")
        def view(name: str) -> str:
            with psycopg.connect(pgworkflows_url) as conn:
                started = engine.start_workflow(greet, name, connection=conn)
                assert engine.get_runs().items == [], "it is not committed"
            return str(started.id)

        with engine, inline(engine) as workflows:
            run = workflows.run(app.test_client().post("/greet/Ada").text)
            assert value(pgworkflows_url, "select status from pgworkflows.runs") == "waiting"
            run.assert_waiting_for("replied")


# Django --------------------------------------------------------------------------------------------------------------


def order(request: HttpRequest, name: str) -> HttpResponse:
    with transaction.atomic():
        made = Order.objects.create(name=name)  # which starts its workflow
        assert django_engine().get_runs().items[0].status == "pending", "its transaction is open"
        if name == "unwanted":
            transaction.set_rollback(True)
    return JsonResponse({"order": made.pk})


urlpatterns = [path("orders/<name>", order)]


@workflow("clash")
def clash(step: Step) -> Steps[str]:
    try:
        yield from step.run("clash", make_twice)
    except Exception as error:
        return f"{error}"
    return "?"


def make_twice() -> None:
    Order.objects.create(pk=7, name="first")
    with transaction.atomic(durable=True):
        Order.objects.create(name="more")
    Order.objects.bulk_create([Order(pk=7, name="again")])


def played(case: type[unittest.TestCase]) -> None:
    """Run a test case as Django's runner does."""
    result = unittest.TestResult()
    with override_settings(ROOT_URLCONF=__name__):
        unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    assert result.testsRun
    problems = [text for _, text in (*result.errors, *result.failures)]
    assert not problems, "\n".join(problems)


class Views:
    """What holds in both kinds of Django's test cases."""

    client: Client
    url: str
    commits: bool

    def test_an_order_is_shipped_when_its_page_is_here(self) -> None:
        with inline(django_engine()) as workflows:
            page = self.client.get("/orders/book")
            made = Order.objects.get(pk=page.json()["order"])
            assert made.shipped
            run = workflows.last_run("ship")
            run.assert_completed({"name": "book"})
            run.assert_step_ran_once("mark-shipped")
        assert value(self.url, STARTED) == (1 if self.commits else 0)

    def test_what_is_rolled_back_was_never_started(self) -> None:
        with inline(django_engine()):
            self.client.get("/orders/unwanted")
            assert django_engine().get_runs().items == []
            assert not Order.objects.exists()

    def test_outside_a_block_a_start_is_driven_at_once(self) -> None:
        with inline(django_engine()) as workflows:
            workflows.register(greet)
            run = workflows.run(start_workflow(greet, "Ada").id)
            run.assert_waiting_for("replied")
            run.send("replied", 1)
            run.assert_completed("hello Ada, 1")
            django_engine().unregister_workflow("greet")

    def test_a_step_that_fails_in_the_database_fails_and_nothing_else(self) -> None:
        with inline(django_engine()) as workflows:
            run = workflows.start(clash)
            assert "duplicate key" in run.output
            django_engine().unregister_workflow("clash")

    def test_steps_are_called_in_the_tests_thread_on_its_connection(self) -> None:
        seen: list[Any] = []

        @workflow("look")
        def look(step: Step) -> Steps[None]:
            yield from step.run("look", lambda: seen.append((threading.current_thread(), connection.connection)))

        connection.ensure_connection()
        with inline(django_engine()) as workflows:
            workflows.start(look).assert_completed()
            django_engine().unregister_workflow("look")
        assert seen[0][0] is threading.current_thread()


@pytest.mark.parametrize("kind", [TestCase, TransactionTestCase], ids=lambda kind: kind.__name__)
def test_views_in_djangos_test_cases(kind: type[TransactionTestCase], shop_url: str) -> None:
    class Case(Views, kind):  # type: ignore[misc, valid-type]  # either
        url = shop_url
        commits = kind is TransactionTestCase

    played(Case)


def test_what_a_transaction_test_case_has_committed_is_gone_in_the_next(shop_url: str) -> None:
    make_clock_movable(shop_url)

    class Case(TransactionTestCase):
        def test_it(self) -> None:
            assert django_engine().get_schedules() == []
            assert django_engine().get_runs().items == []
            with inline(django_engine()) as workflows:
                assert (workflows.now() - timezone.now()) < timedelta(minutes=1), "time is not what it was in the other"
                workflows.register(nightly)
                run = workflows.start(greet, "Ada")
                run.assert_waiting_for("replied")
                workflows.travel("3 days")
                run.assert_completed("hello Ada, None")
                workflows.last_run(nightly).assert_completed()
                django_engine().unregister_workflow("greet")
                django_engine().unregister_workflow("nightly")

        test_it_again = test_it

    played(Case)
    assert value(shop_url, STARTED) == 0


def test_a_flush_that_asks_leaves_the_runs(shop_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    start_workflow("ship", {"order": 1})
    for answer, said in (("no", "cancelled"), ("yes", "left as they are")):
        monkeypatch.setattr("builtins.input", lambda _, answer=answer: answer)
        told = io.StringIO()
        call_command("flush", stdout=told)
        assert said in told.getvalue()
        assert value(shop_url, STARTED) == 1


def test_the_test_case_on_the_page_passes(shop_url: str) -> None:
    names: dict[str, Any] = {"__name__": "page"}
    exec(named(DOCS / "testing.md", "tests.py"), names)
    played(names["OrderTests"])


def test_in_a_test_case_nothing_is_committed_and_time_can_be_moved(shop_url: str) -> None:
    make_clock_movable(shop_url)

    class Case(TestCase):
        def test_it(self) -> None:
            with inline(django_engine()) as workflows:
                run = workflows.start(greet, "Ada")
                assert value(shop_url, STARTED) == 0
                workflows.fail_step("greet")
                other = workflows.start(greet, "Eve", retries=1)
                workflows.travel("1 hour")
                other.assert_waiting_for("replied")
                workflows.travel("3 days")
                run.assert_completed("hello Ada, None")
                django_engine().unregister_workflow("greet")

        def test_the_next_test_begins_anew(self) -> None:
            with inline(django_engine()):
                assert django_engine().get_runs().items == []

    played(Case)
    assert value(shop_url, STARTED) == 0
    assert rows(shop_url, "select forward from pgworkflows_test_clock.moved where forward <> '0'") == []


def test_without_a_clock_time_stands_still_there_and_that_is_said(shop_url: str) -> None:
    class Case(TestCase):
        def test_it(self) -> None:
            with inline(django_engine()) as workflows:
                workflows.start(greet, "Ada").assert_waiting_for("replied")
                django_engine().unregister_workflow("greet")
                with pytest.raises(ConfigurationError, match="cannot be moved"):
                    workflows.travel("1 day")

    played(Case)
