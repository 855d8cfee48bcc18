"""Django's task framework on runs: what it expects of a backend, and starts in the transaction."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from importlib import import_module
from typing import Any

import django
import pytest
from conftest import Databases
from django.core.checks import run_checks
from django.db import transaction
from django.test import override_settings
from django.utils import timezone
from djangoing import pointed_at, run_async, set_up
from working import rows, value

set_up()

from pgworkflows.contrib.django import engine, start_workflow  # noqa: E402  (once Django is set up)

FRAMEWORK = "django.tasks" if django.VERSION >= (6,) else "django_tasks"
# Untyped: of two frameworks, whose types are each other's strangers.
task_backends: Any = import_module(FRAMEWORK).task_backends
errors: Any = import_module(f"{FRAMEWORK}.exceptions")
signals: Any = import_module(f"{FRAMEWORK}.signals")
tasks: Any = import_module("shop.tasks")
add, mail = tasks.add, tasks.mail
InvalidTask: type[Exception] = getattr(errors, "InvalidTask", None) or errors.InvalidTaskError


def work() -> None:
    engine().worker().run_until_idle("20s")


def test_a_task_is_done_by_a_worker(shop_url: str) -> None:
    result = add.enqueue(2, right=3)
    assert (result.status, result.args, result.kwargs, result.attempts) == ("READY", [2], {"right": 3}, 0)
    assert result.enqueued_at is not None
    with pytest.raises(ValueError, match="not finished"):
        _ = result.return_value
    work()
    result.refresh()
    assert (result.status, result.return_value, result.attempts, result.errors) == ("SUCCESSFUL", 5, 1, [])
    assert result.enqueued_at <= result.started_at <= result.last_attempted_at <= result.finished_at
    assert result.is_finished
    assert add.get_result(result.id).task == add


def test_a_task_is_enqueued_in_the_transaction(shop_url: str) -> None:
    with transaction.atomic():
        add.enqueue(1)
        assert value(shop_url, "select count(*) from pgworkflows.runs") == 0
        transaction.set_rollback(True)
    assert value(shop_url, "select count(*) from pgworkflows.runs") == 0
    with transaction.atomic():
        result = add.enqueue(1)
        assert add.get_result(result.id).id == result.id
    assert value(shop_url, "select count(*) from pgworkflows.runs") == 1


def test_queues_priorities_and_async_functions(shop_url: str) -> None:
    low, high = add.using(priority=-100).enqueue(1), add.using(priority=100).enqueue(2)
    sent = mail.enqueue("ann@example.com")
    stored = "select queue, priority from pgworkflows.runs order by id"
    assert rows(shop_url, stored) == [("default", -1000), ("default", 1000), ("mail", 50)]
    engine().worker(threads=1, max_runs=1).run_until_idle("20s")
    for result in (low, high, sent):
        result.refresh()
    assert high.finished_at <= low.finished_at
    assert sent.return_value == "sent to ann@example.com"
    assert (sent.task.queue_name, low.task.priority) == ("mail", 0 if low.task == add else -100)


def test_a_task_runs_no_earlier_than_it_should(shop_url: str) -> None:
    when = timezone.now() + timedelta(hours=1)
    result = add.using(run_after=when).enqueue(1)
    work()
    result.refresh()
    assert result.status == "READY"
    assert add.get_result(result.id).task.run_after == when
    assert value(shop_url, "select scheduled_at from pgworkflows.runs") == when


def test_a_task_that_fails_is_tried_again_and_tells_why(shop_url: str) -> None:
    result = tasks.fail_first.enqueue("nobody")
    work()
    result.refresh()
    assert result.status == "READY"
    [error] = result.errors
    assert error.exception_class_path == "shop.models.Order.DoesNotExist"
    assert "Order matching query does not exist" in error.traceback
    engine().fast_forward_workflow(result.id)
    work()
    result.refresh()
    assert result.return_value == {"attempt": 2, "id": result.id}
    assert (result.attempts, len(result.errors)) == (2, 1)


def test_a_task_fails_in_its_last_attempt(shop_url: str) -> None:
    result, odd = (each.using(backend="other").enqueue() for each in (tasks.fail, tasks.bad_result))
    engine("other").worker().run_until_idle("20s")
    for each in (result, odd):
        each.refresh()
    assert result.status == "FAILED"
    assert result.is_finished
    assert [error.exception_class for error in result.errors] == [ValueError]
    assert [error.exception_class for error in odd.errors] == [TypeError]
    with pytest.raises(ValueError, match="failed"):
        _ = result.return_value


def test_signals_tell_of_each_task(shop_url: str) -> None:
    seen: list[tuple[str, str, str]] = []
    told = {"enqueued": signals.task_enqueued, "started": signals.task_started, "finished": signals.task_finished}
    receivers: list[Any] = []
    for name, signal in told.items():

        def receive(sender: Any, task_result: Any, name: str = name, **more: Any) -> None:
            assert sender is type(task_backends["default"])
            seen.append((name, task_result.id, task_result.status))

        receivers.append(receive)
        signal.connect(receive)
    try:
        result = add.enqueue(1)
        work()
    finally:
        for signal, receive in zip(told.values(), receivers, strict=True):
            signal.disconnect(receive)
    assert seen == [
        ("enqueued", result.id, "READY"),
        ("started", result.id, "RUNNING"),
        ("finished", result.id, "SUCCESSFUL"),
    ]


def test_what_cannot_be_a_task_is_refused(shop_url: str) -> None:
    with pytest.raises(TypeError, match="[Uu]nsupported type"):
        add.enqueue(object())
    with pytest.raises(InvalidTask, match="Queue 'nowhere' is not valid"):
        add.using(queue_name="nowhere")
    with pytest.raises(InvalidTask, match="priority must be a whole number"):
        add.using(priority=101)
    with pytest.raises(InvalidTask, match="run_after must be an aware datetime"):
        add.using(run_after=timezone.make_naive(timezone.now()))
    assert value(shop_url, "select count(*) from pgworkflows.runs") == 0


def test_results_that_are_not_there(shop_url: str) -> None:
    result = add.enqueue(1)
    other = start_workflow("ship", {"order": 1})
    for wrong in ("nonsense", "123e4567-e89b-42d3-a456-426614174000", str(other.id)):
        with pytest.raises(errors.TaskResultDoesNotExist):
            task_backends["default"].get_result(wrong)
    with pytest.raises(errors.TaskResultMismatch):
        mail.get_result(result.id)
    with pytest.raises(errors.TaskResultDoesNotExist):
        task_backends["other"].get_result(result.id)


def test_async_code_enqueues_and_reads_results(shop_url: str) -> None:
    async def view() -> Any:
        result = await add.aenqueue(1, right=1)
        return await add.aget_result(result.id)

    result = run_async(view())
    work()
    run_async(result.arefresh())
    assert result.return_value == 2


def test_a_backend_of_another_database(shop_url: str, databases: Databases, shop_template: str) -> None:
    with databases.fresh(shop_template) as url, pointed_at(shop_url, url):
        add.using(backend="other").enqueue(1)
        assert value(url, "select count(*) from pgworkflows.runs") == 1
    assert value(shop_url, "select count(*) from pgworkflows.runs") == 0


# What the framework's own suite asks of its backends, with a worker in the place of the immediate one ---------------


@pytest.mark.parametrize("name", ["default", "other"])
def test_the_backend_says_what_it_can(name: str) -> None:
    backend = task_backends[name]
    assert backend.alias == name
    assert backend.supports_defer
    assert backend.supports_async_task
    assert backend.supports_get_result
    assert backend.supports_priority
    assert not [*backend.check()]


def test_a_result_read_again_is_the_one_that_was_enqueued(shop_url: str) -> None:
    result = add.enqueue(1, right=2)
    assert add.get_result(result.id) == result
    before = dataclasses.asdict(result)
    result.refresh()
    assert dataclasses.asdict(result) == before
    work()
    assert add.get_result(result.id) != result
    result.refresh()
    assert add.get_result(result.id) == result


def test_a_failed_task_tells_its_exception_with_all_of_its_traceback(shop_url: str) -> None:
    expected = {tasks.fail: (ValueError, "ValueError: never\n"), tasks.leave: (SystemExit, "SystemExit: out of here\n")}
    results = [each.using(backend="other").enqueue() for each in expected]
    engine("other").worker().run_until_idle("20s")
    for result, (exception, last) in zip(results, expected.values(), strict=True):
        result.refresh()
        [error] = result.errors
        assert (result.status, result.is_finished, error.exception_class) == ("FAILED", True, exception)
        assert error.traceback.startswith("Traceback (most recent call last):\n")
        assert error.traceback.endswith(last)
        assert result.enqueued_at <= result.started_at <= result.last_attempted_at <= result.finished_at


def test_a_task_is_told_its_id(shop_url: str) -> None:
    result = tasks.who_am_i.enqueue()
    work()
    result.refresh()
    assert result.return_value == result.id


def test_a_task_is_judged_again_when_it_is_enqueued(shop_url: str) -> None:
    backend = "pgworkflows.contrib.django.tasks.TaskBackend"
    with override_settings(TASKS={"default": {"BACKEND": backend, "QUEUES": []}}):
        anywhere = add.using(queue_name="anywhere")  # no names, no judgement
    with pytest.raises(InvalidTask, match="Queue 'anywhere' is not valid"):
        anywhere.enqueue(1)
    with pytest.raises(InvalidTask, match="Queue 'anywhere' is not valid"):
        run_async(anywhere.aenqueue(1))
    assert value(shop_url, "select count(*) from pgworkflows.runs") == 0


def test_the_framework_logs_what_becomes_of_a_task(shop_url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", logger=FRAMEWORK)
    done, failed = add.enqueue(1), tasks.fail.using(backend="other").enqueue()
    work()
    engine("other").worker().run_until_idle("20s")
    for result, last in ((done, "state=SUCCESSFUL"), (failed, "state=FAILED")):
        said = [record for record in caplog.records if record.name == FRAMEWORK and result.id in record.getMessage()]
        for record, part in zip(said, ("enqueued", "state=RUNNING", last), strict=True):
            assert part in record.getMessage()
    assert said[-1].exc_info is not None, "its exception goes to whoever watches for errors"


def test_options_of_a_backend_are_checked() -> None:
    backend = "pgworkflows.contrib.django.tasks.TaskBackend"
    with override_settings(TASKS={"default": {"BACKEND": backend, "OPTIONS": {"atempts": 1, "attempts": 0}}}):
        found = [message.msg for message in run_checks() if message.id == "pgworkflows.E004"]
    assert found == [
        "TASKS['default']: 'atempts' is no option: these are attempts, database, timeout",
        "TASKS['default']: attempts must be an int, at least 1, not 0",
    ]


def test_workers_have_the_tasks_only_where_they_are_ours() -> None:
    assert "django.task" in engine().registered
    with override_settings(TASKS={}):
        assert "django.task" not in engine().registered
