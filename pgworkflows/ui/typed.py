"""What was typed into a form: the JSON value that it means, and what is wrong with it, at the field where it stands."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pgworkflows.ui.fields import ABSENT, Field, Kind, name_of

_WHOLE = re.compile(r"[+-]?[0-9]{1,400}")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def value_of(made: Field) -> Any:
    """The JSON value that was typed; a field that cannot be read gets an error. ABSENT for nothing at all."""
    if made.kind in (Kind.GROUP, Kind.LIST):
        if not made.present and not any(each.text.strip() for each in made.walk()):
            return _empty(made)
        inner = [(each.path[-1], value_of(each)) for each in made.fields]
        if made.kind is Kind.LIST:
            return [None if value is ABSENT else value for _, value in inner]
        return {key: value for key, value in inner if value is not ABSENT}
    if not made.text.strip() and not (made.kind in (Kind.TEXT, Kind.LONG_TEXT) and made.text):
        return _empty(made)
    try:
        return _read(made.kind, made.text)
    except (ValueError, RecursionError) as error:
        made.errors.append(f"{error}." if str(error) else "This cannot be read.")
        return ABSENT


def _empty(made: Field) -> Any:
    """What an empty field means: nothing where that is possible, else null, else what pydantic will complain about."""
    if not made.required:
        return ABSENT
    if made.nullable:
        return None
    return "" if made.kind in (Kind.TEXT, Kind.LONG_TEXT) else ABSENT


def _read(kind: Kind, text: str) -> Any:
    match kind:
        case Kind.TEXT | Kind.LONG_TEXT:
            return text
        case Kind.INTEGER:
            if not _WHOLE.fullmatch(text.strip()):
                raise ValueError("This is no whole number")
            return int(text)
        case Kind.NUMBER:
            if not _NUMBER.fullmatch(text.strip()):
                raise ValueError("This is no number")
            return int(text) if _WHOLE.fullmatch(text.strip()) else float(text)
        case Kind.CHOICE | Kind.JSON:
            return _parse(text)
        case _:
            return text.strip()


def _parse(text: str) -> Any:
    """The JSON value in what was typed. Raises ValueError, with the place."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"This is no JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise ValueError("This is nested too deeply") from None


def remove_item(top: Field, name: str) -> None:
    """Shorten the list that the item of that name is in."""
    for each in top.walk():
        if each.kind is Kind.LIST and name in {item.name for item in each.fields}:
            each.fields = [item for item in each.fields if item.name != name]
            for number, item in enumerate(each.fields):
                item.label = f"{each.label} {number + 1}"
                for inner in item.walk():
                    inner.path = (*each.path, number, *inner.path[len(each.path) + 1 :])


def place(top: Field, issues: Sequence[Mapping[str, Any]]) -> None:
    """Put pydantic's complaints at their fields, or at the nearest around, with where they point."""
    by_path = {each.path: each for each in top.walk()}
    for issue in issues:
        where = tuple(issue.get("loc", ()))
        length = next(length for length in range(len(where), -1, -1) if where[:length] in by_path)
        beyond = name_of(where[length:])
        by_path[where[:length]].errors.append(f"{beyond}: {issue['msg']}" if beyond else str(issue["msg"]))
