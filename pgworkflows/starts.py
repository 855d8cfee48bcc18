"""What a start says of its run besides the input, checked before anything is written, and its refusal."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import MAXYEAR, datetime, timedelta
from typing import NamedTuple

from pgworkflows.durations import Duration, parse_duration, parse_moment, parse_positive_duration
from pgworkflows.errors import WorkflowRunInProgressError
from pgworkflows.limits import checked_flag, checked_identifier, checked_priority, checked_retries
from pgworkflows.runs import WorkflowRun


class StartTerms(NamedTuple):
    """The options of a start; None leaves one to the workflow's declaration. `headers` is JSON text."""

    resource_id: str | None = None
    priority: int | None = None
    retries: int | None = None
    timeout: timedelta | None = None
    queue: str | None = None
    singleton: bool | None = None
    delay: timedelta | None = None
    run_at: datetime | None = None
    headers: str | None = None

    @classmethod
    def build(
        cls,
        *,
        resource_id: str | None = None,
        priority: str | int | None = None,
        retries: int | None = None,
        timeout: Duration | None = None,
        queue: str | None = None,
        singleton: bool | None = None,
        delay: Duration | None = None,
        run_at: datetime | str | None = None,
        headers: str | None = None,
    ) -> StartTerms:
        """Checked terms. Raises ValueError or TypeError."""
        if delay is not None and run_at is not None:
            raise ValueError("give delay or run_at, not both")
        return cls(
            resource_id=optional_name(resource_id, "resource_id"),
            priority=None if priority is None else checked_priority(priority),
            retries=None if retries is None else checked_retries(retries),
            timeout=None if timeout is None else parse_positive_duration(timeout, "timeout"),
            queue=optional_name(queue, "queue"),
            singleton=None if singleton is None else checked_flag(singleton, "singleton"),
            delay=None if delay is None else parse_duration(delay, "delay"),
            run_at=None if run_at is None else _checked_run_at(run_at),
            headers=headers,
        )


class StartRequest(NamedTuple):
    """What a start writes. `input` is JSON text; `fallback` has the options that the workflow's own code gives, as
    texts, used unless a declaration is stored."""

    workflow_id: str
    input: str
    idempotency_key: str | None
    terms: StartTerms
    fallback: Mapping[str, str | None]


def optional_name(value: str | None, what: str) -> str | None:
    """A name of 1 to 256 characters, or None. Raises ValueError or TypeError."""
    return None if value is None else checked_identifier(value, what)


def _checked_run_at(value: datetime | str) -> datetime:
    moment = parse_moment(value, "run_at")
    if not 1 < moment.year < MAXYEAR:
        # In some time zone this is before the year 1 or after 9999, which a driver cannot read.
        raise ValueError(f"run_at is {value!r}: it lies outside the years 2 to {MAXYEAR - 1}")
    return moment


def in_progress(run: WorkflowRun | None, workflow_id: str) -> WorkflowRunInProgressError:
    """The refusal of a singleton workflow; `run` is the one in the way, if it is not itself refused."""
    if run is None:
        return WorkflowRunInProgressError(
            f"workflow {workflow_id!r} is a singleton: only one run of it can be started at a time",
            workflow_id=workflow_id,
        )
    return WorkflowRunInProgressError(
        f"workflow {workflow_id!r} is a singleton, and run {run.id} of it is {run.status}: wait for it, or cancel it",
        workflow_id=workflow_id,
        run_id=run.id,
    )
