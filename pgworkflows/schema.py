"""SQL text for a schema of any name: files are written with the literal schema `pgworkflows`, quoted here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from itertools import count
from typing import NamedTuple

from pgworkflows.limits import is_storable, quoted

DEFAULT_SCHEMA = "pgworkflows"
MAX_SCHEMA_BYTES = 63
QUOTE = "$function$"
_PLACE = re.compile(r"%(?:%|s|\((?P<name>\w+)\)s)")
_NAME = re.compile(r"""(?P<text>'pgworkflows')|'pgworkflows\.(?P<relation>\w+)'|\bpgworkflows\.|"pgworkflows\"""")


def checked_schema(name: object) -> str:
    """`name` if PostgreSQL can have a schema called so; else TypeError or ValueError."""
    if not isinstance(name, str):
        raise TypeError(f"the schema must be a string, not {type(name).__name__}")
    if not is_storable(name):
        raise ValueError(f"the schema's name must not hold NUL or lone surrogates: {quoted(name)}")
    if not 0 < len(name.encode()) <= MAX_SCHEMA_BYTES:
        raise ValueError(f"the schema's name must have 1 to {MAX_SCHEMA_BYTES} bytes: {quoted(name)}")
    if name.startswith("pg_"):
        raise ValueError(f"the schema's name must not start with pg_, PostgreSQL keeps it for itself: {quoted(name)}")
    return name


def render(sql: str, schema: str) -> str:
    """`sql` with the literal schema `pgworkflows` replaced by `schema`: quoted as an identifier before a dot or in
    double quotes, as text in single quotes."""
    identifier = '"' + schema.replace('"', '""') + '"'

    def spelled(match: re.Match[str]) -> str:
        if match["text"]:
            return _literal(schema)
        if match["relation"]:
            return _literal(f"{identifier}.{match['relation']}")
        return identifier + ("." if match[0].endswith(".") else "")

    if QUOTE in schema:
        # The body of a function must not end within the schema's name.
        sql = sql.replace(QUOTE, next(tag for number in count() if (tag := f"$body{number}$") not in schema))
    return _NAME.sub(spelled, sql)


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


@cache
def statement(name: str, schema: str) -> str:
    """The statement in `sql/<name>.sql` for `schema`, with `%s` for its parameters."""
    return render(_read(name), schema.replace("%", "%%"))


class Numbered(NamedTuple):
    """A statement with `$1`, `$2` … for its parameters, and their names in this order, if they have any."""

    text: str
    names: tuple[str, ...]

    def values(self, params: Sequence[object] | Mapping[str, object]) -> Sequence[object]:
        """The parameters in the order of their numbers."""
        return [params[name] for name in self.names] if isinstance(params, Mapping) else params


@cache
def numbered(sql: str) -> Numbered:
    """A statement of ours as the server takes it. A name that stands in it twice is one parameter."""
    places = count(1)
    names: dict[str, int] = {}

    def place(match: re.Match[str]) -> str:
        if match[0] == "%%":
            return "%"
        name = match["name"]
        return f"${next(places) if name is None else names.setdefault(name, len(names) + 1)}"

    text = _PLACE.sub(place, sql)
    return Numbered(text, tuple(names))


def script(name: str, schema: str) -> str:
    """The statements in `sql/<name>.sql` for `schema`, which take no parameters."""
    return render(_read(name), schema)


def _read(name: str) -> str:
    return (files("pgworkflows.sql") / f"{name}.sql").read_text(encoding="utf-8")
