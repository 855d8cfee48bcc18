"""A field of a form: what it is, and what stands in it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeAlias
from urllib.parse import quote

from pgworkflows.ui.wording import pretty

Schema: TypeAlias = Mapping[str, Any]

ABSENT: Any = object()
"""No value: a field that was left empty, where its object may do without it."""

_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


class Kind(StrEnum):
    """How a value is typed."""

    GROUP = "group"
    LIST = "list"
    TEXT = "text"
    LONG_TEXT = "long_text"
    INTEGER = "integer"
    NUMBER = "number"
    CHOICE = "choice"
    DATE = "date"
    TIME = "time"
    MOMENT = "moment"
    JSON = "json"


@dataclass
class Field:
    """One field, or a group or list of them, with what stands in it."""

    path: tuple[str | int, ...]
    label: str
    kind: Kind
    required: bool
    nullable: bool = False
    description: str = ""
    hint: str = ""
    text: str = ""
    choices: Sequence[tuple[str, str]] = ()
    fields: list[Field] = field(default_factory=list["Field"])
    errors: list[str] = field(default_factory=list[str])
    present: bool = True
    item: Schema = field(default_factory=dict[str, Any], repr=False)

    @property
    def name(self) -> str:
        return name_of(self.path)

    @property
    def anchor(self) -> str:
        """The name as an id of the page's has it, without blanks."""
        return quote(self.name, safe="/")

    @property
    def optional(self) -> bool:
        """Whether there may be no value, or null."""
        return not self.required or self.nullable

    @property
    def has_calendar(self) -> bool:
        """Whether a browser's calendar can show what stands in it."""
        return self.kind is Kind.DATE and (not self.text or _DAY.fullmatch(self.text) is not None)

    def walk(self) -> list[Field]:
        """This field and all below it."""
        return [self, *(inner for each in self.fields for inner in each.walk())]


def name_of(path: Sequence[str | int]) -> str:
    """A path as JSON Pointer writes it."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def with_room(made: Field) -> Field:
    """A field in which text of several lines keeps them."""
    if made.kind is Kind.TEXT and "\n" in made.text:
        made.kind = Kind.LONG_TEXT
    return made


def text_of(made: Field, value: Any) -> str | None:
    """What stands in a field for a value; None if it cannot."""
    match made.kind:
        case _ if value is ABSENT:
            return ""
        case Kind.JSON:
            return pretty(value)
        case Kind.CHOICE if json.dumps(value) in {each for each, _ in made.choices}:
            return json.dumps(value)
        case _ if value is None:
            return ""
        case Kind.INTEGER:
            return str(value) if isinstance(value, int) and not isinstance(value, bool) else None
        case Kind.NUMBER:
            return json.dumps(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
        case Kind.TEXT | Kind.LONG_TEXT:
            # Browsers send every kind of line end as the same one.
            return value if isinstance(value, str) and "\r" not in value else None
        case Kind.DATE:
            return value if isinstance(value, str) and _DAY.fullmatch(value) else None
        case Kind.TIME | Kind.MOMENT:
            return value if isinstance(value, str) and value == value.strip() != "" else None
        case _:
            return None
