"""Words and numbers for time, as callers give them, become `timedelta` and UTC `datetime`."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

from pgworkflows.limits import quoted

Duration: TypeAlias = timedelta | int | float | str
"""A `timedelta`, seconds as a number, words such as "3 days" or "1d 12h", or ISO 8601 such as "PT5M"."""

MAX_DURATION = timedelta(days=365_000)
"""About a thousand years: further away lie moments that neither PostgreSQL nor Python can hold."""

_UNITS = {
    name: unit
    for unit, names in {
        "microseconds": "us µs microsecond microseconds",
        "milliseconds": "ms msec msecs millisecond milliseconds",
        "seconds": "s sec secs second seconds",
        "minutes": "m min mins minute minutes",
        "hours": "h hr hrs hour hours",
        "days": "d day days",
        "weeks": "w week weeks",
    }.items()
    for name in names.split()
}
_WORDS = re.compile(r"\s*(?P<number>[0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*(?P<unit>[^\W\d_]+)\s*")
_NUMBER = r"[0-9]+(?:[.,][0-9]+)?"
_ISO_8601 = re.compile(
    rf"P(?=.)(?:(?P<weeks>{_NUMBER})W)?(?:(?P<days>{_NUMBER})D)?"
    rf"(?:T(?=.)(?:(?P<hours>{_NUMBER})H)?(?:(?P<minutes>{_NUMBER})M)?(?:(?P<seconds>{_NUMBER})S)?)?"
)
_CALENDAR_UNITS = frozenset({"M", "y", "yr", "yrs", "year", "years", "mo", "mon", "month", "months"})
_EXAMPLES = 'write it like "3 days", "1d 12h", "90s" or "PT5M"'


def parse_duration(value: Duration, what: str = "the duration") -> timedelta:
    """`value` as a `timedelta` from zero to about a thousand years.

    Takes a `timedelta`, seconds as a number, words and abbreviations from microseconds to weeks ("3 days",
    "1d 12h", "2 days 12 hours", "250ms", "1.5h") and ISO 8601 ("PT5M", "P1DT2H"). Raises ValueError, which names
    `what` and the value, for what is negative, NaN, infinite, empty, too long, in months or years, or holds an
    unknown or repeated unit; TypeError for other types, also bool.
    """
    duration = _timedelta_of(value, what)
    if duration < timedelta(0):
        raise ValueError(f"{what} is {value!r}: it must not be negative")
    if duration > MAX_DURATION:
        raise ValueError(f"{what} is {value!r}: it must be at most {MAX_DURATION.days:,} days")
    return duration


def parse_positive_duration(value: Duration, what: str = "the duration") -> timedelta:
    """The same as `parse_duration`, and zero is refused with ValueError (also what is rounded to 0 microseconds)."""
    duration = parse_duration(value, what)
    if not duration:
        raise ValueError(f"{what} is {value!r}: it must be greater than zero")
    return duration


def parse_moment(value: datetime | str, what: str = "the time") -> datetime:
    """`value`, an aware datetime or an ISO 8601 string with an offset, as a datetime in UTC.

    Raises ValueError for naive datetimes and unreadable strings, TypeError for other types.
    """
    moment = _datetime_of(value, what)
    if moment.utcoffset() is None:
        raise ValueError(f"{what} is {value!r}: it has no UTC offset; add one, or make the datetime aware")
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError(f"{what} is {value!r}: it lies outside the years 1 to 9999 in UTC") from None


def _timedelta_of(value: object, what: str) -> timedelta:
    if isinstance(value, timedelta):
        return value
    if isinstance(value, str):
        return _in_range(_parse_text(value, what), value, what)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{what} must be a timedelta, a number of seconds or a string, not {type(value).__name__}")
    if value != value:
        raise ValueError(f"{what} is {value!r}: it must be a number of seconds")
    return _in_range({"seconds": value}, value, what)


def _datetime_of(value: object, what: str) -> datetime:
    if isinstance(value, datetime):
        return value
    if not isinstance(value, str):
        raise TypeError(f"{what} must be an aware datetime or an ISO 8601 string, not {type(value).__name__}")
    try:
        return datetime.fromisoformat(value.strip())
    except ValueError:
        example = "2030-01-31T09:00:00+01:00"
        raise _refusal(value, what, f'it must be an ISO 8601 time such as "{example}"') from None


def _parse_text(text: str, what: str) -> dict[str, float]:
    """The amounts in `text` by `timedelta`'s argument names."""
    if text.startswith("P") and (iso := _ISO_8601.fullmatch(text)):
        return {unit: float(amount.replace(",", ".")) for unit, amount in iso.groupdict("0").items()}
    if text.startswith("P") and re.search(r"^P[^T]*[0-9][YM]", text):
        raise _refusal(text, what, "months and years have no fixed length; count in weeks or days")
    if text.lstrip().startswith("-"):
        raise _refusal(text, what, "it must not be negative")
    amounts: dict[str, float] = {}
    position = 0
    while position < len(text):
        token = _WORDS.match(text, position)
        if token is None:
            raise _refusal(text, what, _EXAMPLES)
        unit = _unit_named(token["unit"], text, what)
        if unit in amounts:
            raise _refusal(text, what, f"it names {unit} twice")
        amounts[unit] = float(token["number"])
        position = token.end()
    if not amounts:
        raise _refusal(text, what, _EXAMPLES)
    return amounts


def _unit_named(name: str, text: str, what: str) -> str:
    lowered = name.lower()
    if name == "M" or lowered in _CALENDAR_UNITS:
        raise _refusal(text, what, "months and years have no fixed length; count in weeks or days")
    if lowered not in _UNITS:
        raise _refusal(text, what, f"{name!r} is no unit; {_EXAMPLES}")
    return _UNITS[lowered]


def _in_range(amounts: dict[str, float], value: object, what: str) -> timedelta:
    try:
        return timedelta(**amounts)
    except OverflowError:
        raise ValueError(f"{what} is {quoted(value)}: it must be at most {MAX_DURATION.days:,} days") from None


def _refusal(text: str, what: str, reason: str) -> ValueError:
    return ValueError(f"{what} is {quoted(text)}: {reason}")
