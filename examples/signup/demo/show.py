"""What the demo shows while it goes on: a view that is drawn over and over on a terminal, else plain lines."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

BAR_WIDTH = 20
NAME_WIDTH = 24
SUMMARY_EVERY_S = 1.0


@dataclass(frozen=True)
class Bar:
    """How far one person's run is."""

    name: str
    percentage: int
    status: str
    step: str

    def __str__(self) -> str:
        done = self.percentage * BAR_WIDTH // 100
        bar = "█" * done + "░" * (BAR_WIDTH - done)
        return f"  {padded(self.name, NAME_WIDTH)} {bar} {self.percentage:3} %  {self.status:<9}  {self.step}"


class Show(Protocol):
    """Where the demo tells what happens. Any thread may."""

    def note(self, text: str) -> None:
        """Something happened."""
        ...

    def update(self, summary: str, bars: Sequence[Bar]) -> None:
        """How things stand."""
        ...

    @property
    def room(self) -> int:
        """How many bars can be shown."""
        ...

    def close(self) -> None:
        """Leave what is shown as it is; from now on lines are printed."""
        ...


class Plain:
    """Plain lines: what happens, and how things stand once a second."""

    room = 0

    def __init__(self) -> None:
        self._shown = ""
        self._shown_at = 0.0

    def note(self, text: str) -> None:
        print(text, flush=True)

    def update(self, summary: str, bars: Sequence[Bar]) -> None:  # noqa: ARG002
        now = time.monotonic()
        if summary != self._shown and now - self._shown_at >= SUMMARY_EVERY_S:
            self._shown, self._shown_at = summary, now
            self.note(summary)

    def close(self) -> None:
        pass


class Live:
    """A summary and a bar for each person at the foot of the terminal; what happens scrolls by above."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._view: list[str] = []
        self._drawn = 0

    @property
    def room(self) -> int:
        return max(0, shutil.get_terminal_size().lines - 8)

    def note(self, text: str) -> None:
        self._draw(above=text)

    def update(self, summary: str, bars: Sequence[Bar]) -> None:
        self._draw([summary, *map(str, bars)])

    def close(self) -> None:
        with self._lock:
            self._view, self._drawn = [], 0

    def _draw(self, view: list[str] | None = None, above: str | None = None) -> None:
        columns = shutil.get_terminal_size().columns
        with self._lock:
            if view is not None:
                self._view = [clipped(line, columns - 1) for line in view]
            back = f"\x1b[{self._drawn}F" if self._drawn else ""
            noted = "" if above is None else above + "\n"
            sys.stdout.write(f"{back}\x1b[J{noted}" + "".join(line + "\n" for line in self._view))
            sys.stdout.flush()
            self._drawn = len(self._view)


def show_for_stdout() -> Show:
    """The live view where stdout is a terminal that can be drawn on."""
    return Live() if sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb" else Plain()


def table(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Rows as psql prints them."""
    cells = [["" if value is None else str(value) for value in row] for row in rows]
    numeric = [all(_is_number(row[i]) for row in cells if row[i]) for i in range(len(names))]
    widths = [max(map(width, column)) for column in zip(names, *cells, strict=True)]
    lines = [" | ".join(padded(name, widths[i]) for i, name in enumerate(names))]
    lines.append("-+-".join("-" * each for each in widths))
    for row in cells:
        lines.append(" | ".join(padded(cell, widths[i], right=numeric[i]) for i, cell in enumerate(row)))
    return "\n".join(" " + line.rstrip() for line in lines)


def width(text: str) -> int:
    """How many columns of a terminal a text takes."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def padded(text: str, columns: int, *, right: bool = False) -> str:
    """A text clipped or filled to a width."""
    text = clipped(text, columns)
    space = " " * (columns - width(text))
    return space + text if right else text + space


def clipped(text: str, columns: int) -> str:
    """As much of a text as fits a width."""
    while width(text) > columns:
        text = text[:-1]
    return text


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()
