"""How values are shown to people: times, durations, payloads, failures. What comes from the database may hold anything,
and reaches no terminal as it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from pgworkflows.limits import cleaned

LONGEST_PAYLOAD = 200
_UNITS = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def cleaned_lines(text: str) -> list[str]:
    """The same for a text of several lines."""
    return [cleaned(line.expandtabs()) for line in text.splitlines()]


def one_line(text: str) -> str:
    """A message without its line breaks."""
    return cleaned(" ".join(text.split()))


def moment(at: datetime) -> str:
    """A time to the second, in UTC."""
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def duration(length: timedelta) -> str:
    """A duration in its two largest units."""
    total_s = length.total_seconds()
    if total_s < 0:
        return f"-{duration(-length)}"
    if total_s < 1:
        return f"{total_s * 1000:.0f} ms"
    if total_s < 60:
        return f"{total_s:.1f} s"
    left = round(total_s)
    parts: list[str] = []
    for size, unit in _UNITS:
        amount, left = divmod(left, size)
        if amount or parts:
            parts.append(f"{amount} {unit}")
        if len(parts) == 2:
            break
    return " ".join(part for part in parts if not part.startswith("0 "))


def age(at: datetime, now: datetime | None = None) -> str:
    """How long ago that was, in one unit."""
    passed_s = int(((now or datetime.now(UTC)) - at).total_seconds())
    for size, unit in _UNITS:
        if passed_s >= size:
            return f"{passed_s // size} {unit}"
    return "now"


def payload(value: Any, longest: int = LONGEST_PAYLOAD) -> str:
    """A JSON value in one line, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False)
    return cleaned(text if len(text) <= longest else f"{text[: longest - 1]}…")


def payload_lines(value: Any) -> list[str]:
    """A JSON value, whole."""
    return cleaned_lines(json.dumps(value, ensure_ascii=False, indent=2))


def failure(error: Mapping[str, Any], longest: int = LONGEST_PAYLOAD) -> str:
    """The type and the message of an error in one line."""
    text = one_line(f"{error.get('type')}: {error.get('message')}")
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
