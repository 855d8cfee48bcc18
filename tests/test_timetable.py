"""When a schedule ticks: cron and intervals, clocks that change, what is refused, and which missed ticks fire."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise, takewhile
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim
from hypothesis import given, settings
from hypothesis import strategies as st

from pgworkflows.timetable import MOST_AT_ONCE, CatchUp, Interval, SchedulePlan, Timetable, due, parse_schedule

ZONES = ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "UTC"]
CHANGES = [
    datetime(2026, 3, 29, 1, tzinfo=UTC),  # Berlin: 02:00 becomes 03:00
    datetime(2026, 10, 25, 1, tzinfo=UTC),  # Berlin: 03:00 becomes 02:00
    datetime(2026, 3, 8, 7, tzinfo=UTC),  # New York: 02:00 becomes 03:00
    datetime(2026, 11, 1, 6, tzinfo=UTC),  # New York: 02:00 becomes 01:00
    datetime(2026, 4, 4, 15, tzinfo=UTC),  # Lord Howe: 02:00 becomes 01:30
    datetime(2026, 10, 3, 15, 30, tzinfo=UTC),  # Lord Howe: 02:00 becomes 02:30
]


def at(text: str) -> datetime:
    return datetime.fromisoformat(text + "+00:00")


def ticks(timetable: Timetable, after: datetime, number: int) -> list[datetime]:
    """The next ticks, each asked for from the one before, as from a stored time."""
    found = [after]
    for _ in range(number):
        found.append(timetable.next_after(found[-1]))
    return found[1:]


def local(timetable: Timetable, after: datetime, number: int) -> list[str]:
    """The same as the clocks on the wall show them, with their distance from UTC."""
    zone = ZoneInfo(timetable.timezone)
    return [f"{tick.astimezone(zone):%d %H:%M %z}" for tick in ticks(timetable, after, number)]


class TestCron:
    def test_five_fields_name_minute_hour_day_month_and_weekday(self) -> None:
        assert ticks(parse_schedule("30 9 * * MON-FRI"), at("2026-11-20T09:30"), 2) == [
            at("2026-11-23T09:30"),  # a Monday
            at("2026-11-24T09:30"),
        ]
        assert ticks(parse_schedule("0 0 29 2 *"), at("2026-01-01T00:00"), 1) == [at("2028-02-29T00:00")]
        assert ticks(parse_schedule(" */20  8-9 1 jan,feb * "), at("2026-01-01T08:40"), 2) == [
            at("2026-01-01T09:00"),
            at("2026-01-01T09:20"),
        ]

    @pytest.mark.parametrize(
        ("expression", "days"),
        [
            ("0 0 L * *", ["2026-11-30", "2026-12-31"]),
            ("0 0 LW * *", ["2026-11-30", "2026-12-31"]),
            ("0 0 * * 5L", ["2026-11-27", "2026-12-25"]),
            ("0 0 * * MON#2", ["2026-12-14", "2027-01-11"]),
            ("0 0 * * 0", ["2026-11-29", "2026-12-06"]),
            ("0 0 * * 7", ["2026-11-29", "2026-12-06"]),
            ("0 0 1 * MON", ["2026-11-23", "2026-11-30"]),  # neither day field begins with a star: either matches
            ("0 0 */7 * MON", ["2027-02-01", "2027-02-08"]),  # one does: both must match
        ],
    )
    def test_special_days(self, expression: str, days: list[str]) -> None:
        found = ticks(parse_schedule(expression), at("2026-11-22T12:00"), 2)
        assert [f"{tick:%Y-%m-%d}" for tick in found] == days

    def test_the_time_is_that_of_the_zone(self) -> None:
        assert local(parse_schedule("0 9 * * *", "Asia/Kolkata"), at("2026-06-01T00:00"), 2) == [
            "01 09:00 +0530",
            "02 09:00 +0530",
        ]
        assert ticks(parse_schedule("0 9 * * *", "Europe/Berlin"), at("2026-03-28T00:00"), 2) == [
            at("2026-03-28T08:00"),
            at("2026-03-29T07:00"),
        ]

    @pytest.mark.parametrize(
        ("zone", "after", "expression", "expected"),
        [
            # A reading that is skipped ticks when the clocks go on; one that is shown twice ticks the first time.
            ("Europe/Berlin", "2026-03-28T12:00", "30 2 * * *", ["29 03:00 +0200", "30 02:30 +0200"]),
            ("Europe/Berlin", "2026-03-28T12:00", "0,30 2,3 * * *", ["29 03:00 +0200", "29 03:30 +0200"]),
            ("Europe/Berlin", "2026-10-24T12:00", "30 2 * * *", ["25 02:30 +0200", "26 02:30 +0100"]),
            ("America/New_York", "2026-03-07T12:00", "15 2 * * *", ["08 03:00 -0400", "09 02:15 -0400"]),
            ("America/New_York", "2026-10-31T12:00", "15 1 * * *", ["01 01:15 -0400", "02 01:15 -0500"]),
            ("Australia/Lord_Howe", "2026-10-03T10:00", "15 2 * * *", ["04 02:30 +1100", "05 02:15 +1100"]),
            ("Australia/Lord_Howe", "2026-04-04T10:00", "45 1 * * *", ["05 01:45 +1100", "06 01:45 +1030"]),
            # Every real minute that fits, if minute or hour begins with a star.
            ("Europe/Berlin", "2026-03-28T23:30", "0 * * * *", ["29 01:00 +0100", "29 03:00 +0200"]),
            ("Europe/Berlin", "2026-10-24T23:30", "0 * * * *", ["25 02:00 +0200", "25 02:00 +0100"]),
            (
                "Europe/Berlin",
                "2026-10-24T23:30",
                "*/30 2 * * *",
                ["25 02:00 +0200", "25 02:30 +0200", "25 02:00 +0100", "25 02:30 +0100", "26 02:00 +0100"],
            ),
            ("Europe/Berlin", "2026-03-28T12:00", "*/30 2 * * *", ["30 02:00 +0200"]),
            (
                "Australia/Lord_Howe",
                "2026-04-04T14:00",
                "*/15 1 * * *",
                ["05 01:15 +1100", "05 01:30 +1100", "05 01:45 +1100", "05 01:30 +1030", "05 01:45 +1030"],
            ),
            ("Australia/Lord_Howe", "2026-04-04T14:50", "*/20 2 * * *", ["05 02:00 +1030", "05 02:20 +1030"]),
            ("Australia/Lord_Howe", "2026-10-03T15:00", "*/10 2 * * *", ["04 02:30 +1100", "04 02:40 +1100"]),
        ],
    )
    def test_changing_clocks(self, zone: str, after: str, expression: str, expected: list[str]) -> None:
        assert local(parse_schedule(expression, zone), at(after), len(expected)) == expected

    def test_a_daily_tick_that_was_shown_once_is_not_repeated_from_within_the_second_showing(self) -> None:
        cron = parse_schedule("30 2 * * *", "Europe/Berlin")
        assert cron.next_after(at("2026-10-25T01:15")) == at("2026-10-26T01:30")

    @given(
        minute=st.sampled_from(["*", "*/7", "*/30", "0", "30", "0,30", "5-40/5", "59"]),
        hour=st.sampled_from(["*", "*/2", "*/3", "0", "1", "2", "3", "1-3", "0-23", "23"]),
        zone=st.sampled_from(ZONES),
        change=st.sampled_from(CHANGES),
        before=st.integers(-200, 700),
    )
    @settings(deadline=None, max_examples=150)
    def test_what_ticks_is_what_the_wall_shows_minute_by_minute(
        self, minute: str, hour: str, zone: str, change: datetime, before: int
    ) -> None:
        """Against the plainest way there is: to walk through the real minutes and look at the wall."""
        cron = parse_schedule(f"{minute} {hour} * * *", zone)
        start = change - timedelta(minutes=before)
        end = start + timedelta(hours=14)
        asked = [start]
        while asked[-1] <= end:
            asked.append(cron.next_after(asked[-1]))
        assert all(earlier < later for earlier, later in pairwise(asked))
        wall = start.astimezone(ZoneInfo(zone)).replace(tzinfo=None) - timedelta(days=1)
        fitting = set(takewhile(lambda reading: reading < wall + timedelta(days=3), CronSim(cron.expression, wall)))
        walked = []
        moment = start - timedelta(hours=5)
        shown = wall
        while moment <= end:
            wall = moment.astimezone(ZoneInfo(zone)).replace(tzinfo=None)
            if minute[0] == "*" or hour[0] == "*":
                ticks = wall in fitting
            else:
                # Each reading once: those that the wall has not shown before. After a gap these are several.
                fresh = (wall - shown) // timedelta(minutes=1)
                ticks = any(wall - timedelta(minutes=back) in fitting for back in range(fresh))
            if ticks and moment > start:
                walked.append(moment)
            shown = max(shown, wall)
            moment += timedelta(minutes=1)
        assert asked[1:-1] == walked


class TestIntervals:
    @pytest.mark.parametrize("schedule", ["90 minutes", "PT1H30M", 5400, 5400.0, timedelta(hours=1.5)])
    def test_ticks_are_the_multiples_since_1970(self, schedule: str | float | timedelta) -> None:
        interval = parse_schedule(schedule)
        assert ticks(interval, at("2026-11-22T11:59:59.5"), 2) == [at("2026-11-22T12:00"), at("2026-11-22T13:30")]
        assert interval.next_after(at("2026-11-22T12:00")) == at("2026-11-22T13:30")

    def test_an_interval_need_not_divide_an_hour(self) -> None:
        assert ticks(parse_schedule("7 minutes"), at("1970-01-01T00:55"), 2) == [
            at("1970-01-01T00:56"),
            at("1970-01-01T01:03"),
        ]

    @given(st.timedeltas(timedelta(minutes=1), timedelta(days=800)), st.datetimes(timezones=st.just(UTC)))
    def test_equal_intervals_have_one_spelling_which_reads_back(self, every: timedelta, moment: datetime) -> None:
        interval = Interval(every)
        assert parse_schedule(interval.expression) == interval
        if moment.year < 9990:
            following = interval.next_after(moment)
            assert moment < following <= moment + every
            assert (following - datetime(1970, 1, 1, tzinfo=UTC)) % every == timedelta(0)


class TestRefusals:
    @pytest.mark.parametrize(
        ("schedule", "zone", "words"),
        [
            ("", "UTC", "cron fields"),
            ("soon", "UTC", "cron fields"),
            ("5 4 * *", "UTC", "4 fields"),
            ("0 0 12 * * *", "UTC", "6 fields"),
            ("@daily", "UTC", "macros"),
            ("60 * * * *", "UTC", "Bad minute"),
            ("* * * * FRI-MON", "UTC", "Bad day-of-week"),
            ("a b c d e", "UTC", "Bad minute"),
            ("0 0 31 2 *", "UTC", "Bad day-of-month"),
            ("0 0 30 2 */7", "UTC", "Bad day-of-month"),
            ("0 0 */30 2 MON#2", "UTC", "never tick"),
            ("59 seconds", "UTC", "at least 1 minute"),
            ("0 minutes", "UTC", "greater than zero"),
            ("-5 minutes", "UTC", "negative"),
            ("1 month", "UTC", "months"),
            (59.9, "UTC", "at least 1 minute"),
            (timedelta(0), "UTC", "greater than zero"),
            ("15 minutes", "Europe/Berlin", "no time zone"),
            ("0 9 * * *", "Mars/Olympus", "unknown"),
            ("0 9 * * *", "Europe", "unknown"),
            ("0 9 * * *", "../etc/passwd", "unknown"),
            ("0 9 * * *", "", "1 to 256"),
        ],
    )
    def test_what_is_no_schedule_is_refused_with_the_remedy(self, schedule: str, zone: str, words: str) -> None:
        with pytest.raises(ValueError, match=words):
            parse_schedule(schedule, zone)

    @pytest.mark.parametrize("schedule", [True, b"0 9 * * *", ["0 9 * * *"], object()])
    def test_other_types_are_refused(self, schedule: object) -> None:
        with pytest.raises(TypeError):
            parse_schedule(schedule)  # type: ignore[arg-type]  # that is what is tried

    def test_catch_up_overlap_and_zone_are_checked_also_without_a_schedule(self) -> None:
        assert SchedulePlan.build(None, timezone="UTC", catch_up="latest", overlap="allow") is None
        for wrong in ({"catch_up": "some"}, {"overlap": "queue"}, {"timezone": "Mars"}):
            options = {"timezone": "UTC", "catch_up": "latest", "overlap": "allow", **wrong}
            with pytest.raises(ValueError, match="must be one of|unknown"):
                SchedulePlan.build(None, **options)  # type: ignore[arg-type]  # that is what is tried


class TestDue:
    HOURLY = parse_schedule("0 * * * *")

    def fired(self, since: str, now: str, catch_up: CatchUp) -> list[str]:
        found = due(self.HOURLY, at(f"2026-11-22T{since}"), at(f"2026-11-22T{now}"), catch_up)
        assert found.since == at(f"2026-11-22T{now}")
        assert found.next_at == self.HOURLY.next_after(found.since)
        return [f"{tick:%H:%M}" for tick in found.ticks]

    def test_of_missed_ticks_the_latest_all_or_none_fire(self) -> None:
        assert self.fired("06:30", "09:15", "latest") == ["09:00"]
        assert self.fired("06:30", "09:15", "all") == ["07:00", "08:00", "09:00"]
        assert self.fired("06:30", "09:15", "none") == []

    def test_a_tick_that_is_not_a_minute_late_fires_whatever_is_done_about_missed_ones(self) -> None:
        for catch_up in ("latest", "none"):
            assert self.fired("06:30", "09:00:59", catch_up) == ["09:00"]

    def test_a_tick_fires_at_its_time_and_not_again(self) -> None:
        assert self.fired("08:30", "08:59:59", "latest") == []
        assert self.fired("08:30", "09:00", "latest") == ["09:00"]
        assert self.fired("09:00", "09:00:01", "latest") == []

    def test_many_missed_ticks_come_in_batches_without_a_gap(self) -> None:
        since, now = at("2026-11-01T00:00"), at("2026-11-10T00:00")
        found: list[datetime] = []
        batches = 0
        while since < now:
            batch = due(self.HOURLY, since, now, "all")
            assert len(batch.ticks) <= MOST_AT_ONCE
            found += batch.ticks
            since = batch.since
            batches += 1
        assert found == [at("2026-11-01T00:00") + timedelta(hours=hour) for hour in range(1, 217)]
        assert batches == 3

    @given(
        expression=st.sampled_from(["*/30 * * * *", "0 2 * * *", "30 1,2 * * *", "15 */2 * * SUN", "7 hours"]),
        zone=st.sampled_from(ZONES),
        moments=st.tuples(*[st.integers(-3000, 3000)] * 3).map(sorted),
        change=st.sampled_from(CHANGES),
    )
    @settings(deadline=None)
    def test_wherever_a_worker_stops_and_another_goes_on_no_tick_is_lost_or_repeated(
        self, expression: str, zone: str, moments: list[int], change: datetime
    ) -> None:
        timetable = parse_schedule(expression, "UTC" if "hours" in expression else zone)
        begin, middle, end = (change + timedelta(minutes=each) for each in moments)

        def fired(since: datetime, now: datetime) -> list[datetime]:
            found: list[datetime] = []
            while since < now:
                batch = due(timetable, since, now, "all")
                found += batch.ticks
                since = batch.since
            return found

        whole = fired(begin, end)
        assert whole == fired(begin, middle) + fired(middle, end)
        assert due(timetable, begin, end, "latest").ticks == tuple(whole[-1:])
        assert all(begin < tick <= end for tick in whole)

    def test_when_the_clock_went_back_nothing_fires_twice(self) -> None:
        back = due(self.HOURLY, at("2026-11-22T09:30"), at("2026-11-22T08:30"), "all")
        assert back.ticks == ()
        assert back.since == at("2026-11-22T09:30")

    def test_the_latest_of_ten_years_of_minutes_is_found_at_once(self) -> None:
        every_minute = parse_schedule("* * * * *", "Europe/Berlin")
        found = due(every_minute, at("2016-01-01T00:00"), at("2026-11-22T09:00:30"), "latest")
        assert found.ticks == (at("2026-11-22T09:00"),)
