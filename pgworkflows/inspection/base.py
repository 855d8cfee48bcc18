"""What the parts of the inspector have in common: a client's database, schema and codecs, and nothing that writes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from pgworkflows.client import WorkflowClient
from pgworkflows.database import Row
from pgworkflows.history import StepKind
from pgworkflows.operations import Operations
from pgworkflows.payloads import Payloads
from pgworkflows.schema import statement
from pgworkflows.source import StepDefinition
from pgworkflows.store import moment_from

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
FIRST_ID = UUID(int=0)
LAST_ID = UUID(int=(1 << 128) - 1)


class Inspection(Operations):
    """A part of what an inspector can look at. Threads may share it, as they may its client."""

    def __init__(self, client: WorkflowClient) -> None:
        """`client` is any client or engine; its connections are used."""
        self.client = _checked_client(client)
        self.schema = client.schema

    @property
    def _payloads(self) -> Payloads:
        return self.client.payloads

    def _fetch(self, name: str, params: Mapping[str, object]) -> list[Row]:
        """The rows of the statement in `sql/<name>.sql`."""
        return self.client._reads.fetch(statement(name, self.schema), params)

    def _fetch_json(self, name: str, params: Mapping[str, object]) -> list[Any]:
        """The rows of a statement that writes each as JSON."""
        return [json.loads(text) for (text,) in self._fetch(name, params)]

    def _now(self) -> datetime:
        """The time, by the server's clock."""
        [found] = self._fetch_json("get_mark", {})
        return moment(found["now"])


def _checked_client(given: object) -> WorkflowClient:
    if not isinstance(given, WorkflowClient):
        raise TypeError(f"an inspector needs a WorkflowClient or a WorkflowEngine, not {type(given).__name__}")
    return given


def first_id_at(moment: datetime) -> UUID:
    """The least id that a run started at `moment` or later can have: ids begin with the time, 60 bits of it in units of
    1/4096 ms, with the version between them."""
    ticks = max(0, (moment - EPOCH) // _MICROSECOND * 4096 // 1000)
    return UUID(f"{ticks >> 12:012x}7{ticks & 0xFFF:03x}{0:016x}") if ticks >> 60 == 0 else LAST_ID


def before(moment: datetime, duration: timedelta) -> datetime:
    """The moment so long before another; not before runs could be."""
    return EPOCH if moment - EPOCH < duration else moment - duration


def started_at(run_id: UUID) -> datetime:
    """When a run with this id was started, to the millisecond."""
    return EPOCH + timedelta(milliseconds=min(run_id.int >> 80, 253_402_300_799_000))


def moment(text: str) -> datetime:
    """A `timestamptz` that is not null, as the server wrote it in JSON."""
    found = moment_from(text)
    assert found is not None
    return found


def seconds(value: float | None) -> timedelta | None:
    """A number of seconds that may be null."""
    return None if value is None else timedelta(seconds=value)


def declared_steps(rows: Iterable[Mapping[str, Any]]) -> list[StepDefinition]:
    """The steps that code has declared, as `workflows` keeps them."""
    return [
        StepDefinition(step["id"], StepKind(step["kind"]), step["conditional"], step["loop"], step["dynamic"])
        for step in rows
    ]
