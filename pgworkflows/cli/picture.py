"""How all is at a glance: what `top` looks at, and how that is drawn in the room there is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from pgworkflows.cli.output import shown
from pgworkflows.cli.wording import age, duration
from pgworkflows.durations import Duration
from pgworkflows.healthcheck import Backlog, Health
from pgworkflows.inspection import Activity, Inspector, WorkerInfo, WorkflowActivity

BARS = " ▁▂▃▄▅▆▇█"
LATELY = timedelta(minutes=1)
"""Of which time rates are."""
LINES_AROUND = 4
"""Lines above and below the tables."""


@dataclass(frozen=True)
class Picture:
    """What was seen at one time."""

    at: datetime
    health: Health
    activity: Activity
    backlog: list[Backlog]
    workers: list[WorkerInfo]


@dataclass(frozen=True)
class Column:
    """A column: `width` is the least that it is of use with; numbers stand to the right."""

    title: str
    width: int
    number: bool = True


def look(inspector: Inspector, window: Duration) -> Picture:
    """How all is now. Raises what the database does."""
    activity = inspector.get_activity(window)
    return Picture(
        at=activity.until,
        health=inspector.client.health(),
        activity=activity,
        backlog=inspector.client.get_backlog(),
        workers=inspector.get_workers(),
    )


def as_json_of(picture: Picture) -> dict[str, Any]:
    """The same for scripts."""
    rates = {name: round(rate, 3) for name, rate in _rates(picture.activity).items()}
    return {
        "at": picture.at,
        **picture.health.as_json(),
        "per_second": rates,
        "activity": picture.activity,
        "backlog": picture.backlog,
        "workers": picture.workers,
    }


def drawn(
    picture: Picture,
    width: int,
    height: int | None = None,
    problem: str | None = None,
    every_s: float | None = None,
) -> Group:
    """The picture as lines that fit, or as many as it takes without a height."""
    parts: list[Text] = [*_head(picture, width, problem)]
    tables = [_backlog(picture.backlog), _workflows(picture.activity.workflows), _workers(picture)]
    room = None if height is None else height - len(parts) - (1 if every_s is not None else 0)
    lines: list[Text | Table] = [*parts]
    for (columns, rows), number in zip(tables, _shares([len(rows) for _, rows in tables], room), strict=True):
        if number is not None:
            lines += [Text(), _table(columns, rows, number, width)]
    if every_s is not None:
        at = picture.at.astimezone(UTC).strftime("%H:%M:%SZ")
        lines.append(_cut(Text(f"{at}, every {duration(timedelta(seconds=every_s))}; q quits", style="dim"), width))
    return Group(*lines)


def _head(picture: Picture, width: int, problem: str | None) -> Iterable[Text]:
    health, activity = picture.health, picture.activity
    if problem is not None:
        at = picture.at.astimezone(UTC).strftime("%H:%M:%SZ")
        yield _cut(shown(f"no answer since {at}: {problem}"), width, "bold red")
    live = sum(worker.live for worker in picture.workers)
    counts = {
        "lag": duration(health.queue_lag or timedelta(0)),
        "ready": sum(each.ready for each in picture.backlog),
        "workers": f"{live} live",
        "in hand": sum(worker.runs_in_hand for worker in picture.workers if worker.live),
        "waiting": sum(each.waiting for each in picture.backlog),
    }
    yield _beside([Text.assemble((name, "bold"), f" {value}") for name, value in counts.items()], width)
    rates = _rates(activity)
    shown_rates = ("failed", "completed", "started")
    yield _beside([Text.assemble((name, "bold"), f" {rates[name]:.1f}/s") for name in shown_rates], width)
    yield _sparkline(activity, width)
    for each in health.problems:
        yield _cut(shown(f"problem: {each}"), width, "red")


def _beside(parts: Sequence[Text], width: int) -> Text:
    """As many parts in a line as there is room for, the first ones; of the first as much as fits."""
    line = parts[0]
    for part in parts[1:]:
        longer = Text.assemble(line, "   ", part)
        if longer.cell_len > width:
            break
        line = longer
    return _cut(line, width)


def _rates(activity: Activity) -> dict[str, float]:
    """Runs a second, over the last minute or what of it was looked at."""
    since = max(activity.until - LATELY, activity.since)
    buckets = [bucket for bucket in activity.buckets if bucket.at >= since] or activity.buckets[-1:]
    seconds = max((activity.until - buckets[0].at).total_seconds(), 1.0) if buckets else 1.0
    return {
        name: sum(getattr(bucket, name) for bucket in buckets) / seconds
        for name in ("started", "completed", "failed", "cancelled")
    }


def _sparkline(activity: Activity, width: int) -> Text:
    """How many runs ended over the window, the newest on the right."""
    ended = [bucket.completed + bucket.failed for bucket in activity.buckets]
    window = activity.until - activity.buckets[0].at if activity.buckets else timedelta(0)
    label = f"{'' if any(ended) else 'none '}ended in {duration(window)} "
    ended = ended[-max(width - len(label), 1) :]
    most = max([1, *ended])
    bars = "".join(BARS[-(-count * (len(BARS) - 1) // most)] for count in ended).rstrip()
    return _cut(Text.assemble((label, "bold"), (bars, "green")), width)


def _backlog(backlog: Sequence[Backlog]) -> tuple[list[Column], list[list[object]]]:
    columns = [
        Column("QUEUE", 8, False),
        Column("WORKFLOW", 10, False),
        Column("READY", 5),
        Column("RUNNING", 7),
        Column("LAG", 8),
        Column("WAITING", 7),
        Column("LATER", 5),
        Column("PAUSED", 6),
    ]
    rows: list[list[object]] = [
        [each.queue, each.workflow_id, each.ready, each.running, each.lag, each.waiting, each.later, each.paused]
        for each in sorted(backlog, key=lambda each: (-each.ready, -each.running, each.queue, each.workflow_id))
    ]
    return columns, rows


def _workflows(activity: Sequence[WorkflowActivity]) -> tuple[list[Column], list[list[object]]]:
    """Those that fail first, and then the slowest."""
    columns = [
        Column("ENDED", 10, False),
        Column("RUNS", 5),
        Column("FAILED", 6),
        Column("P95", 8),
        Column("MEDIAN", 8),
    ]
    rows: list[list[object]] = [
        [
            each.workflow_id,
            each.runs,
            Text(str(each.failures), style="bold red" if each.failures else ""),
            each.p95,
            each.median,
        ]
        for each in sorted(activity, key=lambda each: (-each.failures, -each.p95, each.workflow_id))
    ]
    return columns, rows


def _workers(picture: Picture) -> tuple[list[Column], list[list[object]]]:
    columns = [
        Column("WORKER", 10, False),
        Column("PID", 7),
        Column("RUNS", 4),
        Column("HEARTBEAT", 9),
        Column("AGE", 6),
        Column("QUEUES", 10, False),
    ]
    rows: list[list[object]] = [
        [
            each.hostname,
            each.pid,
            each.runs_in_hand,
            age(each.heartbeat_at, picture.at) if each.live else Text("silent", style="bold red"),
            age(each.started_at, picture.at),
            ",".join(each.queues),
        ]
        for each in picture.workers
    ]
    return columns, rows


def _shares(wanted: Sequence[int], room: int | None) -> list[int | None]:
    """How many rows each table gets of the lines there are, beside an empty line and its heading. None: not even these
    are there for it."""
    if room is None:
        return [*wanted]
    tables = min(len(wanted), room // 3)
    left = room - 2 * tables
    shares: list[int | None] = [None] * len(wanted)
    for done, place in enumerate(sorted(range(tables), key=lambda place: wanted[place])):
        given = min(wanted[place], left // (tables - done))
        shares[place] = given
        left -= given
    return shares


def _table(columns: Sequence[Column], rows: Sequence[Sequence[object]], number: int, width: int) -> Table:
    """The first rows, in the columns for which there is room; in the last line how many more there are."""
    taken, used = 0, 0
    for column in columns:
        used += column.width + 2
        if taken and used - 2 > width:
            break
        taken += 1
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns[:taken]:
        table.add_column(column.title, no_wrap=True, overflow="ellipsis", justify="right" if column.number else "left")
    left_out = len(rows) - number
    for row in rows[: number - 1 if left_out else number]:
        table.add_row(*(shown(cell) for cell in row[:taken]))
    if left_out:
        table.add_row(Text(f"… {left_out + 1} more", style="dim"))
    return table


def _cut(text: Text, width: int, style: str | None = None) -> Text:
    """A text in one line."""
    line = text.copy()
    if style is not None:
        line.stylize(style)
    line.truncate(width, overflow="ellipsis")
    return line
