"""A start from Django code is part of the transaction that Django has open on its database, whatever the driver."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import Databases
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connection, transaction
from django.test import override_settings
from djangoing import pointed_at, run_async, set_up
from working import rows, value

from pgworkflows import (
    IdempotencyConflictError,
    InvalidInputError,
    InvalidStatusError,
    RunStatus,
    WorkflowNotFoundError,
    WorkflowRunNotFoundError,
)

set_up()

from shop.models import Order  # noqa: E402  (an app is imported once Django is set up)
from shop.workflows import ship  # noqa: E402

from pgworkflows.contrib.django import astart_workflow, engine, start_workflow, start_workflows, trigger_event  # noqa: E402

STARTED = "select count(*) from pgworkflows.runs"


class Changed(Exception):
    """Undoes a block."""


@contextmanager
def undone(using: str = "default") -> Generator[None]:
    """A block that ends with an exception of its own."""
    with suppress(Changed), transaction.atomic(using=using):
        yield
        raise Changed


@pytest.fixture
def other_url(databases: Databases, shop_template: str, shop_url: str) -> Iterator[str]:
    """The database behind the alias `other`."""
    with databases.fresh(shop_template) as url, pointed_at(shop_url, url):
        yield url


def test_the_driver_is_the_one_that_was_asked_for(shop_url: str) -> None:
    connection.ensure_connection()
    driver: Any = connection.connection
    assert type(driver).__module__.split(".")[0] == os.environ.get("DJANGO_DRIVER", "psycopg")


def test_what_is_rolled_back_was_never_started(shop_url: str) -> None:
    with undone():
        Order.objects.create(name="undone")
        assert len(engine().get_runs().items) == 1
    assert value(shop_url, STARTED) == 0
    assert not Order.objects.exists()


def test_what_is_committed_is_started_then_and_not_before(shop_url: str) -> None:
    with transaction.atomic():
        order = Order.objects.create(name="kept")
        run = start_workflow(ship, {"order": order.pk})
        assert engine().get_run(run.id) == run
        assert value(shop_url, STARTED) == 0
        assert connection.in_atomic_block
    assert value(shop_url, STARTED) == 2
    engine().worker().run_until_idle("20s")
    assert engine().get_run(run.id).output == {"name": "kept"}
    order.refresh_from_db()
    assert order.shipped


def test_outside_a_block_a_start_is_its_own_transaction(shop_url: str) -> None:
    start_workflow("ship", {"order": 1})
    assert value(shop_url, STARTED) == 1


def test_no_call_ends_the_transaction_it_is_in(shop_url: str) -> None:
    """By the number of the transaction: a savepoint or a commit by the driver's own means would show."""
    number = "select pg_current_xact_id()::text"
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(number)
        before = cursor.fetchone()
        run = start_workflow("ship", {"order": 1}, delay="1 hour")
        start_workflows("ship", [{"order": 2}, {"order": 3}])
        trigger_event(run.id, "go", {"by": "me"})
        engine().pause_workflow(run.id)
        engine().resume_workflow(run.id)
        engine().fast_forward_workflow(run.id)
        engine().cancel_workflow(run.id)
        engine().retry_workflow(run.id)
        engine().check_progress(run.id)
        cursor.execute(number)
        assert cursor.fetchone() == before
        assert value(shop_url, STARTED) == 0
        transaction.set_rollback(True)
    assert value(shop_url, STARTED) == 0


def test_a_savepoint_takes_back_what_was_started_within_it(shop_url: str) -> None:
    with transaction.atomic():
        start_workflow("ship", {"order": 1})
        with undone():
            start_workflow("ship", {"order": 2})
        with transaction.atomic():
            start_workflow("ship", {"order": 3})
        start_workflow("ship", {"order": 4})
    assert rows(shop_url, "select input ->> 'order' from pgworkflows.runs order by id") == [("1",), ("3",), ("4",)]


def test_a_refusal_leaves_the_transaction_usable(shop_url: str) -> None:
    taken = start_workflow("ship", {"order": 1}, idempotency_key="k", resource_id="r")
    with transaction.atomic():
        with pytest.raises(IdempotencyConflictError):
            start_workflow("ship", {"order": 1}, idempotency_key="k")
        with pytest.raises(InvalidInputError):
            start_workflow("ship", {"order": "many"})
        with pytest.raises(WorkflowNotFoundError):
            start_workflow("unknown")
        with pytest.raises(InvalidStatusError):
            engine().resume_workflow(taken.id)
        with pytest.raises(WorkflowRunNotFoundError):
            trigger_event(taken.id, "go", resource_id="another")
        Order.objects.create(name="after all that")
        assert start_workflow("ship", {"order": 1}, idempotency_key="k", resource_id="r") == taken
    assert value(shop_url, STARTED) == 2


def test_using_names_the_database(shop_url: str, other_url: str) -> None:
    with transaction.atomic(using="other"):
        Order(name="elsewhere").save(using="other")
        start_workflow("ship", {"order": 1}, using="default")  # not in this transaction: at once
        assert (value(shop_url, STARTED), value(other_url, STARTED)) == (1, 0)
    assert (value(shop_url, STARTED), value(other_url, STARTED)) == (1, 1)
    with undone("other"), undone():
        start_workflow("ship", {"order": 2}, using="other")
        start_workflow("ship", {"order": 2})
    assert (value(shop_url, STARTED), value(other_url, STARTED)) == (1, 1)
    with transaction.atomic(using="other"), undone():
        start_workflow("ship", {"order": 3}, using="other")
        start_workflow("ship", {"order": 3})
    assert (value(shop_url, STARTED), value(other_url, STARTED)) == (1, 2)


class ToOther:
    """Runs stand in the database `other`, all else in the default one."""

    def db_for_write(self, model: Any, **hints: Any) -> str | None:
        return "other" if model._meta.app_label == "pgworkflows" else None

    db_for_read = db_for_write


@override_settings(DATABASE_ROUTERS=[f"{__name__}.ToOther"])
def test_without_using_the_routers_name_the_database(shop_url: str, other_url: str) -> None:
    run = start_workflow("ship", {"order": 1})
    assert (value(shop_url, STARTED), value(other_url, STARTED)) == (0, 1)
    assert engine().alias == "other"
    engine().worker().run_until_idle("20s")
    assert engine().get_run(run.id).status is RunStatus.FAILED  # there is no such order
    start_workflow("ship", {"order": 1}, using="default")
    assert value(shop_url, STARTED) == 1


def test_async_code_starts_runs_in_the_thread_of_its_other_calls(shop_url: str) -> None:
    async def view() -> Any:
        order = await Order.objects.acreate(name="async")
        return await astart_workflow(ship, {"order": order.pk})

    async def view_that_blocks() -> Any:
        return start_workflow("ship", {"order": 1})

    run = run_async(view())
    assert run.status is RunStatus.PENDING
    with pytest.raises(SynchronousOnlyOperation):
        run_async(view_that_blocks())
    assert value(shop_url, STARTED) == 2


@pytest.mark.skipif("DJANGO_DRIVER" in os.environ, reason="this is that other run")
def test_all_this_on_psycopg2(server: str) -> None:
    """In another process: Django chooses its driver once."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", __file__],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "DJANGO_DRIVER": "psycopg2", "PGWORKFLOWS_TEST_URL": server},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed, 1 skipped" in done.stdout
