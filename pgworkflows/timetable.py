"""When a schedule ticks: cron expressions, intervals, and which missed ticks are due. Pure: time is an input."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice, takewhile
from typing import Literal, TypeAlias, get_args
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from pgworkflows.durations import Duration, parse_positive_duration
from pgworkflows.limits import checked_identifier, quoted

CatchUp: TypeAlias = Literal["latest", "all", "none"]
Overlap: TypeAlias = Literal["allow", "skip"]

MIN_INTERVAL = timedelta(minutes=1)
PUNCTUAL = timedelta(minutes=1)
"""How late a tick may be and still fire where missed ones do not."""
MOST_AT_ONCE = 100
"""How many missed ticks are made up for in one transaction."""
LONGEST_SHIFT = timedelta(hours=4)
"""More than any zone has turned its clocks back at once since there are standard times."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MINUTE = timedelta(minutes=1)
_EXAMPLES = 'write five cron fields such as "0 9 * * MON-FRI", or an interval such as "15 minutes"'


@dataclass(frozen=True)
class Interval:
    """Ticks at the whole multiples of `every` since 1970-01-01 00:00 UTC, so that no restart and no redeclaration
    shifts them (the interval specification of Temporal's schedules, with offset 0)."""

    every: timedelta

    @property
    def expression(self) -> str:
        """One spelling for equal intervals, which `parse_schedule` reads."""
        minutes, seconds = divmod(self.every, _MINUTE)
        amounts = {
            "day": minutes // 1440,
            "hour": minutes // 60 % 24,
            "minute": minutes % 60,
            "second": f"{seconds.total_seconds():.6f}".rstrip("0").rstrip("."),
        }
        words = [f"{amount} {unit}{'s' * (amount != 1)}" for unit, amount in amounts.items() if amount not in (0, "0")]
        return " ".join(words)

    @property
    def timezone(self) -> str:
        return "UTC"

    def next_after(self, moment: datetime) -> datetime:
        """The first tick after `moment`, in UTC."""
        return EPOCH + ((moment - EPOCH) // self.every + 1) * self.every


@dataclass(frozen=True)
class Cron:
    """Ticks when the clocks on the wall of `timezone` show what the five fields say.

    Where clocks are changed it does as Debian's cron: if the minute or the hour begins with `*`, every real minute
    whose reading fits is a tick. Otherwise each reading ticks once: one that is skipped when the minute after the gap
    begins, one that is shown twice the first time.
    """

    expression: str
    timezone: str

    def next_after(self, moment: datetime) -> datetime:
        """The first tick after `moment`, in UTC. Raises ValueError if none follows within 50 years."""
        zone = ZoneInfo(self.timezone)
        minute, hour = self.expression.split()[:2]
        fixed = not minute.startswith("*") and not hour.startswith("*")
        now = moment.astimezone(zone)
        begin = now.replace(tzinfo=None)
        if not fixed and now.utcoffset() != (moment + LONGEST_SHIFT).astimezone(zone).utcoffset():
            # The clocks may be about to go back: readings of the past will be shown once more.
            begin -= LONGEST_SHIFT
        found: datetime | None = None
        # cronsim is asked for the calendar alone. Its own rules for changing clocks lose ticks where the shift is half
        # an hour, and begin in the past within a repeated hour.
        for reading in CronSim(self.expression, begin):
            shown = [*_first_showing(reading, zone)] if fixed else [*_showings(reading, zone)]
            ahead = [tick for tick in shown if tick > moment]
            found = min([*ahead, found] if found else ahead, default=None)
            if found is not None and _in_utc(reading, zone, fold=0) >= found:
                return found
        if found is None:
            raise ValueError(f"the schedule {self.expression!r} has no tick within 50 years after {moment}")
        return found


Timetable: TypeAlias = Cron | Interval


def _showings(reading: datetime, zone: ZoneInfo) -> Iterator[datetime]:
    """When the clocks show `reading`: once, twice when they are set back, never when they are set forward over it."""
    first, second = (_in_utc(reading, zone, fold) for fold in (0, 1))
    if first.astimezone(zone).replace(tzinfo=None) == reading:
        yield first
        if second != first:
            yield second


def _first_showing(reading: datetime, zone: ZoneInfo) -> Iterator[datetime]:
    """When the clocks first show `reading`, or else the first whole minute after it that they do show."""
    while not (shown := [*_showings(reading, zone)]):
        reading += _MINUTE
    yield shown[0]


def _in_utc(reading: datetime, zone: ZoneInfo, fold: int) -> datetime:
    return reading.replace(tzinfo=zone, fold=fold).astimezone(UTC)


def parse_schedule(schedule: Duration, timezone: str = "UTC") -> Timetable:
    """The timetable of five cron fields in `timezone`, or of an interval of at least a minute.

    An interval is whatever `parse_positive_duration` takes. Raises ValueError for what is neither, for an unknown zone,
    for a zone with an interval, and for an expression that never ticks; TypeError for other types.
    """
    _check_zone(timezone)
    if not isinstance(schedule, str):
        return _interval(parse_positive_duration(schedule, "the schedule"), schedule, timezone)
    try:
        every = parse_positive_duration(schedule, "the schedule")
    except ValueError as error:
        return _cron(schedule, timezone, error)
    return _interval(every, schedule, timezone)


def _interval(every: timedelta, given: object, timezone: str) -> Interval:
    if every < MIN_INTERVAL:
        raise ValueError(f"the schedule is {given!r}: an interval must be at least 1 minute")
    if timezone != "UTC":
        raise ValueError(
            f"the schedule {given!r} is an interval, which knows no time zone; timezone={timezone!r} needs a cron "
            'expression, such as "0 9 * * *"'
        )
    return Interval(every)


def _cron(text: str, timezone: str, no_duration: ValueError) -> Cron:
    fields = text.split()
    if len(fields) != 5:
        if text.lstrip().startswith("@"):
            reason = "macros are not understood"
        elif "*" in text or len(fields) > 5:
            reason = f"it has {len(fields)} fields, cron expressions have 5 (minute, hour, day, month, weekday)"
        else:
            raise ValueError(f"{no_duration}; for a schedule {_EXAMPLES}") from None
        raise ValueError(f"the schedule is {quoted(text)}: {reason}; {_EXAMPLES}") from None
    expression = " ".join(fields)
    try:
        CronSim(expression, EPOCH)
    except (CronSimError, ValueError, TypeError, AssertionError) as error:
        raise ValueError(f"the schedule is {quoted(text)}: {str(error) or 'it cannot be read'}; {_EXAMPLES}") from None
    cron = Cron(expression, timezone)
    try:
        cron.next_after(EPOCH)
    except ValueError:
        raise ValueError(f"the schedule is {quoted(text)}: there is no such day, it would never tick") from None
    return cron


def _check_zone(timezone: str) -> None:
    checked_identifier(timezone, "the timezone")
    try:
        ZoneInfo(timezone)
    except (KeyError, ValueError, OSError):
        raise ValueError(
            f"the timezone {timezone!r} is unknown: use a name of the IANA database, such as 'Europe/Berlin' or 'UTC'"
        ) from None


@dataclass(frozen=True)
class Due:
    """What is to be done now: the ticks to fire, in order; up to when all ticks are dealt with then; the next one."""

    ticks: tuple[datetime, ...]
    since: datetime
    next_at: datetime


def due(timetable: Timetable, since: datetime, now: datetime, catch_up: CatchUp) -> Due:
    """What a schedule has to fire at `now` that has dealt with its ticks up to `since`.

    Of missed ticks "latest" fires the last, "all" each, in order, at most `MOST_AT_ONCE` now (`next_at` is past then),
    "none" no tick that is more than a minute late.
    """
    match catch_up:
        case "all":
            ticks = tuple(islice(_ticks(timetable, since, now), MOST_AT_ONCE))
            reached = ticks[-1] if len(ticks) == MOST_AT_ONCE else max(since, now)
        case "latest" | "none":
            begin = since if catch_up == "latest" else max(since, now - PUNCTUAL)
            last = _last(timetable, begin, now)
            ticks = () if last is None else (last,)
            reached = max(since, now)
    return Due(ticks, reached, timetable.next_after(reached))


def _ticks(timetable: Timetable, since: datetime, until: datetime) -> Iterator[datetime]:
    """The ticks after `since`, up to and with `until`."""

    def from_there_on() -> Iterator[datetime]:
        tick = since
        while True:
            tick = timetable.next_after(tick)
            yield tick

    return takewhile(lambda tick: tick <= until, from_there_on())


def _last(timetable: Timetable, since: datetime, until: datetime) -> datetime | None:
    """The last of these ticks, found from the end: a year has half a million minutes."""
    span = timedelta(hours=1)
    while True:
        begin = max(since, until - span)
        found = [*_ticks(timetable, begin, until)]
        if found or begin == since:
            return found[-1] if found else None
        span *= 4


@dataclass(frozen=True)
class SchedulePlan:
    """When runs of a workflow start by themselves, and what happens to missed and to overlapping ones."""

    timetable: Timetable
    catch_up: CatchUp
    overlap: Overlap

    @classmethod
    def build(
        cls, schedule: Duration | None, *, timezone: str, catch_up: CatchUp, overlap: Overlap
    ) -> SchedulePlan | None:
        """A checked plan; None without a schedule. Raises ValueError or TypeError."""
        _check_choice(catch_up, CatchUp, "catch_up")
        _check_choice(overlap, Overlap, "overlap")
        if schedule is None:
            _check_zone(timezone)
            return None
        return cls(parse_schedule(schedule, timezone), catch_up, overlap)


def _check_choice(value: object, choices: object, what: str) -> None:
    if value not in get_args(choices):
        allowed = ", ".join(repr(choice) for choice in get_args(choices))
        raise ValueError(f"{what} must be one of {allowed}, not {quoted(value)}")
