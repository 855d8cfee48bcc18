"""How times, durations, numbers and payloads are written on pages."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, cast

SHOWN = 20_000
"""What a page shows of one payload, in characters; the rest is behind a link. Of an output of a step, or the data of an
event, that has more bytes there is nothing but the link."""
_DAY = 86_400
# What turns text round, joins it, or is not to be seen at all: shown as the escape that JSON has for it.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")


def plain(value: object) -> str:
    """Text that is what it looks like: characters that cannot be seen are escapes."""
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", str(value))


def moment(value: datetime | None) -> str:
    """A time to the second, in UTC."""
    return "" if value is None else f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def iso(value: datetime) -> str:
    """A time as machines read it, and people who want every digit."""
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z")


def duration(value: timedelta | float | None) -> str:
    """A length of time in its two largest units: 340 ms, 2.1 s, 3 min 20 s, 2 d 4 h."""
    if value is None:
        return ""
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    sign, seconds = ("-" if seconds < 0 else ""), abs(seconds)
    if seconds < 1:
        return f"{sign}{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{sign}{seconds:.1f} s"
    whole = round(seconds)
    for unit, length, next_unit, next_length in (("d", _DAY, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= length:
            rest = whole % length // next_length
            return f"{sign}{whole // length} {unit}" + (f" {rest} {next_unit}" if rest else "")
    return f"{sign}{whole} s"


def number(value: float | None) -> str:
    """A number with its thousands apart."""
    return "" if value is None else f"{value:,}".replace(",", "\u202f")


def percent(value: float | None) -> str:
    """A part of one."""
    return "" if value is None else f"{value * 100:.1f} %"


def pretty(value: Any) -> str:
    """A JSON value to be read; what a function has put in its place may be anything."""
    return plain(_laid_out(value))


def _laid_out(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, indent=2, default=str)
    except RecursionError:
        return "(nested too deeply to be laid out: open the whole)"


@dataclass(frozen=True)
class Shown:
    """A payload as a page shows it: text, perhaps cut; `size` is that of the whole, in characters."""

    text: str
    size: int
    summary: str

    @property
    def cut(self) -> bool:
        return self.size > SHOWN


def shown(value: Any) -> Shown:
    """What a page shows of a payload. What it does not show costs no more than to be written."""
    whole = _laid_out(value)
    text = plain(whole[:SHOWN])
    return Shown(text, len(whole), _summary(value, text))


def _summary(value: Any, text: str) -> str:
    if isinstance(value, dict):
        keys = [plain(key) for key in cast("dict[str, Any]", value)]
        return "{ " + ", ".join(keys[:6]) + (", …" if len(keys) > 6 else "") + " }"
    if isinstance(value, list):
        return f"[ {len(cast('list[object]', value))} ]"
    line = text.partition("\n")[0]
    return line if len(line) <= 80 else line[:79] + "…"
