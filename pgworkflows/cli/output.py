"""What commands print: tables and details for people, JSON for scripts.

A table is as wide as its content where it is piped, and never wider than a terminal: long columns are cut there, and
where that is not enough each row becomes a block of lines. Colours are for terminals only, and not with NO_COLOR.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import click
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from pgworkflows.cli.wording import duration, moment
from pgworkflows.history import StepStatus
from pgworkflows.limits import cleaned
from pgworkflows.runs import RunStatus

GAP = "  "
NARROWEST = 8
"""A column is not cut to less than this."""
STYLES: Mapping[str, str] = {
    "pending": "dim",
    "running": "blue",
    "waiting": "cyan",
    "retrying": "yellow",
    "paused": "yellow",
    "completed": "green",
    "failed": "bold red",
    "cancelled": "magenta",
}

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")


def console(*, stderr: bool = False) -> Console:
    """Where standard output, or standard error, goes now. Nothing in a text is taken for markup."""
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)


def say(text: str = "", style: str | None = None, *, stderr: bool = False) -> None:
    """Print a line that holds no line break; a terminal wraps it."""
    _print(console(stderr=stderr), Text(cleaned(text), style=style or ""))


def hint(text: str) -> None:
    """Tell who sits before a terminal what else could be done."""
    if console().is_terminal:
        say(text, "dim", stderr=True)


def print_json(value: Any) -> None:
    """Print a value as one line of JSON: times in ISO 8601, durations in seconds."""
    click.echo(json.dumps(value, default=_plain))


def print_table(
    head: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    cut: Iterable[str] = (),
    empty: str | None = None,
    stderr: bool = False,
) -> None:
    """Print rows under their headings. The columns in `cut` may be shortened to fit a terminal. `empty` is said in a
    terminal where there are no rows."""
    values = [list(row) for row in rows]
    cells = [[shown(value) for value in row] for row in values]
    titles = [Text(title, style="bold") for title in head]
    widths = [max(cell.cell_len for cell in column) for column in zip(titles, *cells, strict=True)]
    numbers = [_are_numbers([row[place] for row in values]) for place in range(len(titles))]
    found = console(stderr=stderr)
    if not values and empty is not None and found.is_terminal:
        say(empty, "dim", stderr=stderr)
        return
    if found.is_terminal:
        widths = _fitted(widths, [title in set(cut) for title in head], found.width)
    if found.is_terminal and _total(widths) > found.width:
        for number, row in enumerate(values):
            if number:
                say(stderr=stderr)
            print_details(zip(head, row, strict=True), stderr=stderr)
        return
    for line in (titles, *cells):
        _print(found, _joined(line, widths, numbers))


def print_details(pairs: Iterable[tuple[str, object]], *, stderr: bool = False) -> None:
    """Print names and values, a line each, without those that are None. Long values go on in further lines, and begin
    on a line of their own where a word of theirs, such as an id, would be broken else."""
    known = [(name, shown(value)) for name, value in pairs if value is not None]
    indent = max((len(name) for name, _ in known), default=0) + len(GAP)
    found = console(stderr=stderr)
    width = max(found.width - indent, NARROWEST) if found.is_terminal else None
    for name, value in known:
        if width is not None and width < max(map(cell_len, value.plain.split()), default=0) <= found.width - len(GAP):
            _print(found, Text(name.lower(), style="bold"))
            for piece in value.wrap(found, found.width - len(GAP), overflow="fold"):
                _print(found, Text.assemble(GAP, piece))
            continue
        pieces = [value] if width is None else value.wrap(found, width, overflow="fold")
        for number, piece in enumerate(pieces or [value]):
            label = name.lower() if number == 0 else ""
            _print(found, Text.assemble((f"{label:<{indent}}", "bold"), piece))


def shown(value: object) -> Text:
    """A value as a cell of a table has it."""
    match value:
        case None:
            return Text("-", style="dim")
        case Text():
            return value
        case RunStatus() | StepStatus():
            return Text(value, style=STYLES.get(value, ""))
        case datetime():
            return Text(moment(value))
        case timedelta():
            return Text(duration(value))
        case _:
            return Text(cleaned(str(value)))


def _are_numbers(column: Sequence[object]) -> bool:
    known = [value for value in column if value is not None and not isinstance(value, Text)]
    return bool(known) and all(isinstance(value, int) for value in known)


def _fitted(widths: list[int], may_be_cut: list[bool], room: int) -> list[int]:
    """The widths with which a table fits, the widest of the columns that may be cut first; or as near as that gets."""
    fitted = list(widths)
    while (excess := _total(fitted) - room) > 0:
        wide = [place for place, cut in enumerate(may_be_cut) if cut and fitted[place] > NARROWEST]
        if not wide:
            break
        widest = max(wide, key=lambda place: fitted[place])
        others = [fitted[place] for place in wide if fitted[place] < fitted[widest]]
        least = max([NARROWEST, *others, fitted[widest] - excess])
        fitted[widest] = min(least, fitted[widest] - 1)
    return fitted


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(GAP) * (len(widths) - 1)


def _joined(line: Sequence[Text], widths: Sequence[int], numbers: Sequence[bool]) -> Text:
    """A line of a table. Numbers stand at the right of their column."""
    joined = Text()
    for place, (cell, width) in enumerate(zip(line, widths, strict=True)):
        if cell.cell_len > width:
            cell = cell.copy()
            cell.truncate(width, overflow="ellipsis")
        blanks = " " * (width - cell.cell_len)
        before = (GAP if place else "") + (blanks if numbers[place] else "")
        joined.append(before).append_text(cell).append("" if numbers[place] else blanks)
    joined.rstrip()
    return joined


def _print(found: Console, line: Text) -> None:
    if found.is_terminal:
        found.print(line, soft_wrap=True)
    else:
        found.file.write(f"{line.plain}\n")
        found.file.flush()  # whoever reads may have gone: that is told here, and not when Python ends


def _plain(value: object) -> Any:
    """What JSON has for a value that it does not know."""
    match value:
        case datetime():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case UUID():
            return str(value)
        case _ if is_dataclass(value) and not isinstance(value, type):
            return {field.name: getattr(value, field.name) for field in fields(value)}
        case _:
            raise TypeError(f"{type(value).__name__} has no form in JSON")
