"""Durations and moments: everything the API names is read, everything doubtful is refused by name."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgworkflows.durations import MAX_DURATION, parse_duration, parse_moment, parse_positive_duration

READ = {
    "3 days": timedelta(days=3),
    "1 day": timedelta(days=1),
    "1d 12h": timedelta(days=1, hours=12),
    "1d12h": timedelta(days=1, hours=12),
    "2 days 12 hours": timedelta(days=2, hours=12),
    "24 hours": timedelta(hours=24),
    "30s": timedelta(seconds=30),
    "90 sec": timedelta(seconds=90),
    "1.5h": timedelta(minutes=90),
    ".5 min": timedelta(seconds=30),
    "250ms": timedelta(milliseconds=250),
    "10 µs": timedelta(microseconds=10),
    "2 Weeks": timedelta(weeks=2),
    "  5   minutes  ": timedelta(minutes=5),
    "0s": timedelta(0),
    "PT5M": timedelta(minutes=5),
    "P1DT2H": timedelta(days=1, hours=2),
    "P2W": timedelta(weeks=2),
    "PT1.5H": timedelta(minutes=90),
    "PT0,25S": timedelta(milliseconds=250),
}

REFUSED: list[tuple[Any, str]] = [
    ("", "write it like"),
    ("   ", "write it like"),
    ("-3 days", "must not be negative"),
    (-1, "must not be negative"),
    (-0.5, "must not be negative"),
    (timedelta(seconds=-1), "must not be negative"),
    ("1h -5m", "write it like"),
    (float("nan"), "must be a number"),
    (float("inf"), "at most"),
    (float("-inf"), "at most"),
    ("nan", "write it like"),
    ("inf", "write it like"),
    ("30", "write it like"),
    ("days", "write it like"),
    ("+3 days", "write it like"),
    ("1e3 s", "'e' is no unit"),
    ("3 parsecs", "'parsecs' is no unit"),
    ("3 days, 2 hours", "write it like"),
    ("1h 2h", "hours twice"),
    ("1 h 2 hours", "hours twice"),
    ("1 month", "no fixed length"),
    ("2 years", "no fixed length"),
    ("1M", "no fixed length"),
    ("P1M", "no fixed length"),
    ("P1Y", "no fixed length"),
    ("P1Y2M3DT4H", "no fixed length"),
    ("P", "write it like"),
    ("PT", "write it like"),
    ("P1DT", "write it like"),
    ("PT5M5M", "write it like"),
    ("PT-5M", "write it like"),
    ("-PT5M", "must not be negative"),
    ("365001 days", "at most"),
    ("9" * 5000 + " days", "at most"),
    (10**400, "at most"),
    (10**5000, "at most"),
    (timedelta.max, "at most"),
    ("٣ days", "write it like"),
]


@pytest.mark.parametrize(("text", "duration"), READ.items())
def test_words_and_iso_8601_are_read(text: str, duration: timedelta) -> None:
    assert parse_duration(text) == duration


@pytest.mark.parametrize("number", [0, 5, 0.25, 86_400])
def test_a_number_means_seconds(number: float) -> None:
    assert parse_duration(number) == timedelta(seconds=number)


@pytest.mark.parametrize(
    ("value", "reason"), REFUSED, ids=lambda value: repr(value)[:20] if value != 10**5000 else "huge"
)
def test_doubtful_durations_are_refused_by_name(value: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as refusal:
        parse_duration(value, "the timeout of step 'x'")
    assert str(refusal.value).startswith("the timeout of step 'x' is ")
    assert len(str(refusal.value)) < 400


@pytest.mark.parametrize("value", [True, False, None, [1], b"1d", 1j, date(2030, 1, 1)])
def test_other_types_are_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="the delay must be a timedelta"):
        parse_duration(value, "the delay")


@pytest.mark.parametrize("value", [0, 0.0, "0s", "PT0S", timedelta(0), "0.0000001s", 1e-9])
def test_zero_is_no_positive_duration(value: Any) -> None:
    assert parse_duration(value) == timedelta(0)
    with pytest.raises(ValueError, match=r"the interval is .*greater than zero"):
        parse_positive_duration(value, "the interval")


@given(st.timedeltas(timedelta(0), MAX_DURATION))
def test_a_timedelta_is_taken_as_it_is(duration: timedelta) -> None:
    assert parse_duration(duration) is duration


@given(st.text())
def test_any_text_is_a_duration_or_a_value_error(text: str) -> None:
    try:
        duration = parse_duration(text)
    except ValueError:
        return
    assert timedelta(0) <= duration <= MAX_DURATION


@given(st.integers(0, 99), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59), st.sampled_from(["", " ", "  "]))
def test_units_add_up_in_words_as_in_iso_8601(days: int, hours: int, minutes: int, seconds: int, blank: str) -> None:
    expected = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    words = f"{days}{blank}d{blank}{hours}{blank}hours{blank}{minutes}{blank}m{blank}{seconds}{blank}s"
    assert parse_duration(words) == expected
    assert parse_duration(f"P{days}DT{hours}H{minutes}M{seconds}S") == expected


@pytest.mark.parametrize(
    "value",
    [
        datetime(2030, 1, 31, 9, tzinfo=timezone(timedelta(hours=1))),
        "2030-01-31T09:00:00+01:00",
        "2030-01-31T08:00:00Z",
        " 2030-01-31 08:00+00:00 ",
        "20300131T080000Z",
    ],
)
def test_moments_come_back_in_utc(value: datetime | str) -> None:
    moment = parse_moment(value)
    assert moment == datetime(2030, 1, 31, 8, tzinfo=UTC)
    assert moment.tzinfo is UTC


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (datetime(2030, 1, 31), "no UTC offset"),  # noqa: DTZ001  (naive on purpose)
        ("2030-01-31T09:00:00", "no UTC offset"),
        ("2030-01-31", "no UTC offset"),
        ("tomorrow", "ISO 8601"),
        ("", "ISO 8601"),
        ("2030-02-30T00:00:00Z", "ISO 8601"),
        ("9999-12-31T23:59:59-01:00", "years 1 to 9999"),
    ],
)
def test_moments_without_an_offset_or_out_of_reach_are_refused(value: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=f"the wait is .*{reason}"):
        parse_moment(value, "the wait")


@pytest.mark.parametrize("value", [None, 1893456000, date(2030, 1, 1), b"2030"])
def test_other_types_are_no_moments(value: Any) -> None:
    with pytest.raises(TypeError, match="the wait must be an aware datetime"):
        parse_moment(value, "the wait")
