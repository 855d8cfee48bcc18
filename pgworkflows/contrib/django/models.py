"""The library's tables as models that Django only reads: what changes a run goes through the engine.

Where they are written tells Django's routers where everything of pgworkflows is.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Never
from uuid import UUID

from django.db import models

from pgworkflows.contrib.django.fields import JsonColumn, TextArray
from pgworkflows.contrib.django.tables import table
from pgworkflows.history import StepKind, StepStatus
from pgworkflows.runs import RunStatus


def choices_of(kind: type[StrEnum]) -> list[tuple[str, str]]:
    """Values as Django's choices."""
    return [(each.value, each.value) for each in kind]


def _refuse(*_args: Any, **_options: Any) -> Never:
    raise TypeError(
        "pgworkflows' tables are only read through models: change runs with engine() of pgworkflows.contrib.django"
    )


class Rows(models.QuerySet[Any]):
    """Rows that are looked at only."""

    create = bulk_create = bulk_update = update = delete = staticmethod(_refuse)


class ReadOnly(models.Model):
    """A row that is looked at only."""

    objects = Rows.as_manager()

    class Meta:
        abstract = True

    def save(self, *args: Any, **options: Any) -> Never:
        _refuse()

    def delete(self, *args: Any, **options: Any) -> Never:
        _refuse()


class Run(ReadOnly):
    """One execution of a workflow."""

    id: models.UUIDField[UUID, UUID] = models.UUIDField(primary_key=True)
    workflow_id: models.TextField[str, str] = models.TextField()
    status: models.TextField[str, str] = models.TextField(choices=choices_of(RunStatus))
    input = JsonColumn()
    output = JsonColumn(null=True)
    error = JsonColumn(null=True)
    resource_id: models.TextField[str | None, str | None] = models.TextField(null=True)
    idempotency_key: models.TextField[str | None, str | None] = models.TextField(null=True)
    queue: models.TextField[str, str] = models.TextField()
    priority: models.IntegerField[int, int] = models.IntegerField()
    singleton: models.BooleanField[bool, bool] = models.BooleanField()
    current_step_id: models.TextField[str | None, str | None] = models.TextField(null=True)
    retry_count: models.IntegerField[int, int] = models.IntegerField()
    max_retries: models.IntegerField[int, int] = models.IntegerField()
    parent_run: models.ForeignKey[Run | None, Run | None] = models.ForeignKey(
        "self", models.DO_NOTHING, null=True, db_constraint=False, related_name="children"
    )
    parent_run_id: UUID | None
    parent_step_id: models.TextField[str | None, str | None] = models.TextField(null=True)
    scheduled_at: models.DateTimeField[datetime | None, datetime | None] = models.DateTimeField(null=True)
    timeout_at: models.DateTimeField[datetime | None, datetime | None] = models.DateTimeField(null=True)
    timeout: models.DurationField[timedelta | None, timedelta | None] = models.DurationField(null=True)
    created_at: models.DateTimeField[datetime, datetime] = models.DateTimeField()
    started_at: models.DateTimeField[datetime | None, datetime | None] = models.DateTimeField(null=True)
    updated_at: models.DateTimeField[datetime, datetime] = models.DateTimeField()
    paused_at: models.DateTimeField[datetime | None, datetime | None] = models.DateTimeField(null=True)
    resumed_at: models.DateTimeField[datetime | None, datetime | None] = models.DateTimeField(null=True)
    completed_at: models.DateTimeField[datetime | None, datetime | None] = models.DateTimeField(null=True)

    class Meta(ReadOnly.Meta):
        managed = False
        db_table = table("runs")
        ordering = ("-id",)
        default_permissions = ("view",)
        permissions = [
            (f"{action}_run", f"Can {words} runs")
            for action, words in {
                "start": "start",
                "trigger": "send events to",
                "pause": "pause",
                "resume": "resume",
                "cancel": "cancel",
                "retry": "retry",
                "fast_forward": "fast-forward",
            }.items()
        ]

    def __str__(self) -> str:
        return f"{self.workflow_id} {self.id}"


class Step(ReadOnly):
    """A step that a run has reached."""

    pk = models.CompositePrimaryKey("run_id", "step_id")
    run: models.ForeignKey[Run, Run] = models.ForeignKey(
        Run, models.DO_NOTHING, db_constraint=False, related_name="steps"
    )
    run_id: UUID
    position: models.IntegerField[int, int] = models.IntegerField()
    step_id: models.TextField[str, str] = models.TextField()
    kind: models.TextField[str, str] = models.TextField(choices=choices_of(StepKind))
    status: models.TextField[str, str] = models.TextField(choices=choices_of(StepStatus))
    output = JsonColumn(null=True)
    error = JsonColumn(null=True)
    attempts: models.IntegerField[int, int] = models.IntegerField()
    started_at: models.DateTimeField[datetime | None, datetime | None] = models.DateTimeField(null=True)
    completed_at: models.DateTimeField[datetime | None, datetime | None] = models.DateTimeField(null=True)
    wake_at: models.DateTimeField[datetime | None, datetime | None] = models.DateTimeField(null=True)
    event_name: models.TextField[str | None, str | None] = models.TextField(null=True)
    child_run: models.ForeignKey[Run | None, Run | None] = models.ForeignKey(
        Run, models.DO_NOTHING, null=True, db_constraint=False, related_name="invoked_by"
    )
    child_run_id: UUID | None

    class Meta(ReadOnly.Meta):
        managed = False
        db_table = table("steps")
        ordering = ("run_id", "position")
        default_permissions = ("view",)

    def __str__(self) -> str:
        return self.step_id


class Event(ReadOnly):
    """An event that a run has got."""

    id: models.BigIntegerField[int, int] = models.BigIntegerField(primary_key=True)
    run: models.ForeignKey[Run, Run] = models.ForeignKey(
        Run, models.DO_NOTHING, db_constraint=False, related_name="events"
    )
    run_id: UUID
    name: models.TextField[str, str] = models.TextField()
    data = JsonColumn()
    idempotency_key: models.TextField[str | None, str | None] = models.TextField(null=True)
    received_at: models.DateTimeField[datetime, datetime] = models.DateTimeField()
    consumed_at: models.DateTimeField[datetime | None, datetime | None] = models.DateTimeField(null=True)
    step_id: models.TextField[str | None, str | None] = models.TextField(null=True)

    class Meta(ReadOnly.Meta):
        managed = False
        db_table = table("events")
        ordering = ("id",)
        default_permissions = ("view",)

    def __str__(self) -> str:
        return self.name


class Workflow(ReadOnly):
    """A workflow, as engines and workers last declared it."""

    id: models.TextField[str, str] = models.TextField(primary_key=True)
    queue: models.TextField[str, str] = models.TextField()
    priority: models.IntegerField[int, int] = models.IntegerField()
    retries: models.IntegerField[int, int] = models.IntegerField()
    timeout: models.DurationField[timedelta | None, timedelta | None] = models.DurationField(null=True)
    singleton: models.BooleanField[bool, bool] = models.BooleanField()
    retention: models.DurationField[timedelta | None, timedelta | None] = models.DurationField(null=True)
    steps = JsonColumn()
    declared_at: models.DateTimeField[datetime, datetime] = models.DateTimeField()

    class Meta(ReadOnly.Meta):
        managed = False
        db_table = table("workflows")
        ordering = ("id",)
        default_permissions = ("view",)

    def __str__(self) -> str:
        return self.id


class Schedule(ReadOnly):
    """When runs of a workflow start by themselves."""

    workflow_id: models.TextField[str, str] = models.TextField(primary_key=True)
    expression: models.TextField[str, str] = models.TextField()
    timezone: models.TextField[str, str] = models.TextField()
    catch_up: models.TextField[str, str] = models.TextField()
    overlap: models.TextField[str, str] = models.TextField()
    input = JsonColumn()
    next_at: models.DateTimeField[datetime | None, datetime | None] = models.DateTimeField(null=True)
    last_tick_at: models.DateTimeField[datetime | None, datetime | None] = models.DateTimeField(null=True)
    last_run: models.ForeignKey[Run | None, Run | None] = models.ForeignKey(
        Run, models.DO_NOTHING, null=True, db_constraint=False, related_name="+"
    )
    last_run_id: UUID | None
    last_skipped_at: models.DateTimeField[datetime | None, datetime | None] = models.DateTimeField(null=True)
    paused_at: models.DateTimeField[datetime | None, datetime | None] = models.DateTimeField(null=True)
    declared_at: models.DateTimeField[datetime, datetime] = models.DateTimeField()

    class Meta(ReadOnly.Meta):
        managed = False
        db_table = table("schedules")
        ordering = ("workflow_id",)
        default_permissions = ("view",)
        permissions = [(f"{action}_schedule", f"Can {action} schedules") for action in ("pause", "resume", "trigger")]

    def __str__(self) -> str:
        return self.workflow_id


class Worker(ReadOnly):
    """A live worker."""

    id: models.UUIDField[UUID, UUID] = models.UUIDField(primary_key=True)
    hostname: models.TextField[str, str] = models.TextField()
    pid: models.IntegerField[int, int] = models.IntegerField()
    queues = TextArray()
    workflows = TextArray()
    has_lock: models.BooleanField[bool, bool] = models.BooleanField()
    lease: models.DurationField[timedelta, timedelta] = models.DurationField()
    started_at: models.DateTimeField[datetime, datetime] = models.DateTimeField()
    heartbeat_at: models.DateTimeField[datetime, datetime] = models.DateTimeField()

    class Meta(ReadOnly.Meta):
        managed = False
        db_table = table("workers")
        ordering = ("started_at",)
        default_permissions = ("view",)

    def __str__(self) -> str:
        return f"{self.hostname} {self.pid}"
