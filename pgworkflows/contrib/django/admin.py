"""Runs, schedules and workers in Django's admin: looked at by whoever may view them, steered by whoever may that."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.contrib import admin, messages
from django.contrib.auth import get_permission_codename
from django.core.paginator import Paginator
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.functional import cached_property
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe
from django.utils.timezone import localtime

from pgworkflows.contrib.django.engines import DjangoEngine, engine
from pgworkflows.contrib.django.models import Run, Schedule, Worker, Workflow
from pgworkflows.errors import WorkflowEngineError
from pgworkflows.history import StepRecord

MOST_COUNTED = 10_000
NOTHING = mark_safe("-")
WRAPPED = '<pre style="margin: 0; white-space: pre-wrap; overflow-wrap: anywhere">{}</pre>'
STEP_COLUMNS = ("Step", "Kind", "Status", "Attempts", "Begun", "Ended")


if TYPE_CHECKING:
    Pages = Paginator[Any]
    ModelAdmin = admin.ModelAdmin[Any]
else:  # what only the stubs give parameters
    from django.contrib.admin import ModelAdmin

    Pages = Paginator


class BoundedPaginator(Pages):
    """Counts so far and no farther: a table of runs may have very many rows."""

    @cached_property
    def count(self) -> int:
        rows: Any = self.object_list
        return int(rows[:MOST_COUNTED].count())


class LookedAt(ModelAdmin):
    """Nothing is added, changed or deleted here."""

    paginator = BoundedPaginator
    show_full_result_count = False

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def may(self, request: HttpRequest, action: str) -> bool:
        """Whether the user has the permission for an action."""
        user: Any = request.user
        return bool(user.has_perm(f"{self.opts.app_label}.{get_permission_codename(action, self.opts)}"))

    def act(
        self, request: HttpRequest, chosen: QuerySet[Any], done: str, act: Callable[[DjangoEngine, Any], object]
    ) -> None:
        """Do something to each that is chosen, and tell for how many it could not be done, and why."""
        found, count = engine(), 0
        for each in chosen:
            try:
                act(found, each.pk)
                count += 1
            except WorkflowEngineError as error:
                self.message_user(request, str(error), messages.ERROR)
        if count:
            what = self.opts.verbose_name if count == 1 else self.opts.verbose_name_plural
            self.message_user(request, f"{count} {what} {done}", messages.SUCCESS)


class WorkflowFilter(admin.SimpleListFilter):
    """By workflow, of those that are declared: the table of runs is not searched for them."""

    title = "workflow"
    parameter_name = "workflow"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, str]]:
        return [(each, each) for each in Workflow.objects.values_list("id", flat=True)]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset if self.value() is None else queryset.filter(workflow_id=self.value())


class QueueFilter(admin.SimpleListFilter):
    """By queue, of those that workers serve."""

    title = "queue"
    parameter_name = "queue"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, str]]:
        named = {*Workflow.objects.values_list("queue", flat=True)}
        served = {queue for queues in Worker.objects.values_list("queues", flat=True) for queue in queues}
        return [(queue, queue) for queue in sorted(named | served)]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset if self.value() is None else queryset.filter(queue=self.value())


@admin.register(Run)
class RunAdmin(LookedAt):
    """Runs, and the timeline of each."""

    list_display = ("id", "workflow_id", "status", "current_step_id", "resource_id", "queue", "created_at")
    list_filter = ("status", WorkflowFilter, QueueFilter, ("created_at", admin.DateFieldListFilter))
    search_fields = ("id",)
    search_help_text = "The id of a run or of its parent, an idempotency key, a resource or a workflow, as a whole"
    list_per_page = 50
    actions = ("pause", "resume", "cancel", "retry", "fast_forward")
    fieldsets = (
        (None, {"fields": ("id", "workflow_id", "status", "progress", "parent", "children_shown")}),
        ("Payloads", {"fields": ("input_shown", "output_shown", "error_shown")}),
        ("Timeline", {"fields": ("timeline",)}),
        (
            "Details",
            {
                "classes": ("collapse",),
                "fields": (
                    ("resource_id", "idempotency_key"),
                    ("queue", "priority", "singleton"),
                    ("current_step_id", "retry_count", "max_retries"),
                    ("created_at", "started_at", "updated_at", "completed_at"),
                    ("scheduled_at", "timeout_at", "paused_at", "resumed_at"),
                ),
            },
        ),
    )

    def get_search_results(self, request: HttpRequest, queryset: QuerySet[Any], search_term: str) -> Any:
        term = search_term.strip()
        if not term:
            return queryset, False
        named = Q(idempotency_key=term) | Q(resource_id=term) | Q(workflow_id=term)
        try:
            key = UUID(term)
        except ValueError:
            return queryset.filter(named), False
        return queryset.filter(named | Q(id=key) | Q(parent_run=key)), False

    @admin.display(description="progress")
    def progress(self, run: Run) -> str:
        found = engine().check_progress(run.id)
        return (
            f"{found.completion_percentage} % ({found.completed_steps} of {found.total_steps} steps; "
            f"{found.live_workers} live workers)"
        )

    @admin.display(description="parent")
    def parent(self, run: Run) -> SafeString:
        return NOTHING if run.parent_run_id is None else _link(run.parent_run_id, f"step {run.parent_step_id} of ")

    @admin.display(description="children")
    def children_shown(self, run: Run) -> SafeString:
        children = Run.objects.filter(parent_run=run.pk).order_by("id")
        lines = [(_link(child.pk), child.workflow_id, child.status) for child in children]
        return format_html_join(mark_safe("<br>"), "{} {} ({})", lines) or NOTHING

    @admin.display(description="input")
    def input_shown(self, run: Run) -> SafeString:
        return _payload(engine().get_run(run.id).input)

    @admin.display(description="output")
    def output_shown(self, run: Run) -> SafeString:
        return _payload(engine().get_run(run.id).output)

    @admin.display(description="error")
    def error_shown(self, run: Run) -> SafeString:
        return _failure(engine().get_run(run.id).error)

    @admin.display(description="steps")
    def timeline(self, run: Run) -> SafeString:
        rows = format_html_join("", "{}", ((_rows(step),) for step in engine().get_steps(run.id)))
        head = format_html_join("", '<th scope="col">{}</th>', ((name,) for name in STEP_COLUMNS))
        return format_html(
            '<div style="overflow-x: auto"><table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>', head, rows
        )

    @admin.action(description="Pause", permissions=["pause"])
    def pause(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        self.act(request, queryset, "paused", lambda found, key: found.pause_workflow(key))

    @admin.action(description="Resume", permissions=["resume"])
    def resume(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        self.act(request, queryset, "resumed", lambda found, key: found.resume_workflow(key))

    @admin.action(description="Cancel", permissions=["cancel"])
    def cancel(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        self.act(request, queryset, "cancelled", lambda found, key: found.cancel_workflow(key))

    @admin.action(description="Retry", permissions=["retry"])
    def retry(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        self.act(request, queryset, "retried", lambda found, key: found.retry_workflow(key))

    @admin.action(description="Fast-forward the wait they are in", permissions=["fast_forward"])
    def fast_forward(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        self.act(request, queryset, "fast-forwarded", lambda found, key: found.fast_forward_workflow(key))

    def has_pause_permission(self, request: HttpRequest) -> bool:
        return self.may(request, "pause")

    def has_resume_permission(self, request: HttpRequest) -> bool:
        return self.may(request, "resume")

    def has_cancel_permission(self, request: HttpRequest) -> bool:
        return self.may(request, "cancel")

    def has_retry_permission(self, request: HttpRequest) -> bool:
        return self.may(request, "retry")

    def has_fast_forward_permission(self, request: HttpRequest) -> bool:
        return self.may(request, "fast_forward")


@admin.register(Schedule)
class ScheduleAdmin(LookedAt):
    """Schedules, as workers declare them."""

    list_display = ("workflow_id", "expression", "timezone", "next_at", "last_tick_at", "last", "paused_at")
    actions = ("pause", "resume", "trigger")

    @admin.display(description="last run")
    def last(self, schedule: Schedule) -> SafeString:
        return NOTHING if schedule.last_run_id is None else _link(schedule.last_run_id)

    @admin.action(description="Pause", permissions=["pause"])
    def pause(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        self.act(request, queryset, "paused", lambda found, key: found.pause_schedule(key))

    @admin.action(description="Resume", permissions=["resume"])
    def resume(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        self.act(request, queryset, "resumed", lambda found, key: found.resume_schedule(key))

    @admin.action(description="Start a run now", permissions=["trigger"])
    def trigger(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        self.act(request, queryset, "triggered", lambda found, key: found.trigger_schedule(key))

    def has_pause_permission(self, request: HttpRequest) -> bool:
        return self.may(request, "pause")

    def has_resume_permission(self, request: HttpRequest) -> bool:
        return self.may(request, "resume")

    def has_trigger_permission(self, request: HttpRequest) -> bool:
        return self.may(request, "trigger")


@admin.register(Worker)
class WorkerAdmin(LookedAt):
    """The workers that live."""

    list_display = ("id", "hostname", "pid", "queues", "workflows", "started_at", "heartbeat_at")


def _link(run_id: UUID, before: str = "") -> SafeString:
    return format_html('{}<a href="{}">{}</a>', before, reverse("admin:pgworkflows_run_change", args=[run_id]), run_id)


def _payload(value: Any) -> SafeString:
    if value is None:
        return NOTHING
    return format_html(WRAPPED, json.dumps(value, ensure_ascii=False, indent=1))


def _failure(error: dict[str, Any] | None) -> SafeString:
    if error is None:
        return NOTHING
    text = f"{error['type']}: {error['message']}"
    trace = error.get("traceback")
    if not trace:
        return format_html("{}", text)
    return format_html("<details><summary>{}</summary>{}</details>", text, format_html(WRAPPED, trace))


def _rows(step: StepRecord) -> SafeString:
    """A step, and below it what came of it, which may be long."""
    shown = (step.step_id, step.kind, step.status, step.attempts or "", _time(step.started_at), _ended(step))
    cells = format_html_join("", "<td>{}</td>", ((each,) for each in shown))
    parts: list[SafeString] = []
    if step.child_run_id is not None:
        parts.append(_link(step.child_run_id, "run "))
    if step.error is not None:
        parts.append(_failure(step.error))
    elif step.output is not None:
        parts.append(_payload(step.output))
    if not parts:
        return format_html("<tr>{}</tr>", cells)
    below = format_html_join(" ", "{}", ((part,) for part in parts))
    return format_html('<tr>{}</tr><tr><td colspan="{}">{}</td></tr>', cells, len(shown), below)


def _ended(step: StepRecord) -> str | SafeString:
    if step.completed_at is None and step.wake_at is not None:
        return f"until {_time(step.wake_at)}"
    return _time(step.completed_at)


def _time(value: datetime | None) -> str | SafeString:
    """A time to the second, as the admin's other times in the zone of the project."""
    return NOTHING if value is None else f"{localtime(value):%Y-%m-%d %H:%M:%S}"
