"""Forms made of a JSON Schema: their fields, with a value in them, or with what was typed.

A field's name is the path of its value, as JSON Pointer has it. What no field is made for (unions, free objects, deep
recursion, values that do not fit) is typed as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeAlias, cast

from pgworkflows.ui.fields import ABSENT, Field, Kind, Schema, text_of, with_room
from pgworkflows.ui.wording import pretty

Form: TypeAlias = Mapping[str, str]

MAX_DEPTH = 8
MAX_ITEMS = 200
MAX_FIELDS = 2000
NO_SCHEMA = (TypeError, ValueError, AttributeError, LookupError, RecursionError)
"""What comes of reading as a schema what is none."""


class FormMaker:
    """Makes the fields of one schema. One that is none, which any client may have declared, makes one field: JSON."""

    def __init__(self, schema: Schema) -> None:
        self._root: Schema = schema
        self._made = 0

    def of_value(self, value: Any) -> Field:
        """The fields with a JSON value in them, or empty if that is ABSENT."""
        return self._tried(lambda: self._field(self._root, (), value, required=True, label=""))

    def of_form(self, form: Form) -> Field:
        """The fields with what was typed into them."""
        return self._tried(lambda: self._typed(self._root, (), form, required=True, label=""))

    def _tried(self, make: Callable[[], Field]) -> Field:
        self._made = 0
        try:
            return make()
        except NO_SCHEMA:
            self._root = {}
            return make()

    def add_item(self, top: Field, name: str) -> None:
        """Lengthen the list of that name by an empty item."""
        for each in top.walk():
            if each.name == name and each.kind is Kind.LIST and len(each.fields) < MAX_ITEMS:
                number, each.present = len(each.fields), True
                path, label = (*each.path, number), f"{each.label} {number + 1}"
                with suppress(*NO_SCHEMA):
                    each.fields.append(self._field(each.item, path, ABSENT, required=True, label=label))

    # A field of a schema, with a value ------------------------------------------------------------------------------

    def _field(self, schema: Schema, path: tuple[str | int, ...], value: Any, *, required: bool, label: str) -> Field:
        made = self._bare(schema, path, required=required, label=label)
        schema, _ = self._resolved(schema)
        if value is None and not _may_be_empty(made, schema):
            return self._as_json(made, value)
        match made.kind:
            case Kind.GROUP:
                given = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
                if set(given) - set(schema["properties"]) or not _is_or_lacks(value, dict):
                    return self._as_json(made, value)
                made.present = not made.optional or isinstance(value, dict)
                made.fields = [
                    self._field(inner, (*path, key), given.get(key, ABSENT), required=_needs(schema, key), label=key)
                    for key, inner in schema["properties"].items()
                ]
            case Kind.LIST:
                if not _is_or_lacks(value, list):
                    return self._as_json(made, value)
                items = cast("list[object]", value) if isinstance(value, list) else []
                if len(items) > MAX_ITEMS:
                    return self._as_json(made, value)
                made.present = not made.optional or isinstance(value, list)
                made.fields = [
                    self._field(schema["items"], (*path, number), item, required=True, label=f"{label} {number + 1}")
                    for number, item in enumerate(items)
                ]
            case _:
                text = text_of(made, value)
                if text is None:
                    return self._as_json(made, value)
                made.text = text
        return with_room(made)

    def _as_json(self, made: Field, value: Any) -> Field:
        """A value that does not fit its field, to be seen and changed all the same."""
        made.kind, made.fields, made.choices = Kind.JSON, [], ()
        made.text = "" if value is ABSENT else pretty(value)
        return made

    # A field of a schema, with what was typed -----------------------------------------------------------------------

    def _typed(self, schema: Schema, path: tuple[str | int, ...], form: Form, *, required: bool, label: str) -> Field:
        made = self._bare(schema, path, required=required, label=label)
        schema, _ = self._resolved(schema)
        name = made.name
        if form.get(f"json:{name}") is not None:
            made.kind, made.choices = Kind.JSON, ()
        if made.kind in (Kind.GROUP, Kind.LIST):
            made.present = not made.optional or form.get(f"has:{name}") == "1"
        if made.kind is Kind.GROUP:
            made.fields = [
                self._typed(inner, (*path, key), form, required=_needs(schema, key), label=key)
                for key, inner in schema["properties"].items()
            ]
        elif made.kind is Kind.LIST:
            made.fields = [
                self._typed(schema["items"], (*path, number), form, required=True, label=f"{label} {number + 1}")
                for number in range(_count(form, name))
            ]
        else:
            made.text = form.get(f"json:{name}" if made.kind is Kind.JSON else f"f:{name}", "").replace("\r\n", "\n")
        return with_room(made)

    # What a schema asks for -----------------------------------------------------------------------------------------

    def _bare(self, schema: Schema, path: tuple[str | int, ...], *, required: bool, label: str) -> Field:
        schema, nullable = self._resolved(schema)
        self._made += 1
        kind, choices = self._kind(schema, path)
        description, item = schema.get("description"), schema.get("items")
        return Field(
            path=path,
            label=label,
            kind=kind,
            required=required,
            nullable=nullable,
            description=description if isinstance(description, str) else "",
            hint=_hint(schema, kind),
            choices=choices,
            item=cast(Schema, item) if isinstance(item, Mapping) else {},
        )

    def _kind(self, schema: Schema, path: tuple[str | int, ...]) -> tuple[Kind, Sequence[tuple[str, str]]]:
        values = schema.get("enum", [schema["const"]] if "const" in schema else None)
        if isinstance(values, list):
            return Kind.CHOICE, [(json.dumps(each), _choice(each)) for each in cast("list[object]", values)]
        if len(path) >= MAX_DEPTH or self._made > MAX_FIELDS:
            return Kind.JSON, ()
        match schema.get("type"):
            case "object" if isinstance(schema.get("properties"), Mapping) and schema["properties"]:
                return Kind.GROUP, ()
            case "array" if isinstance(schema.get("items"), Mapping) and schema["items"]:
                return Kind.LIST, ()
            case "boolean":
                return Kind.CHOICE, [("true", "yes"), ("false", "no")]
            case "integer":
                return Kind.INTEGER, ()
            case "number":
                return Kind.NUMBER, ()
            case "string":
                return _TEXTS.get(schema.get("format", ""), _long(schema)), ()
            case _:
                return (Kind.TEXT if _is_decimal(schema) else Kind.JSON), ()

    def _resolved(self, schema: Schema) -> tuple[Schema, bool]:
        """A schema without its reference, and without null as an alternative; whether it had that."""
        nullable = False
        for _ in range(MAX_DEPTH * 2):
            reference, options = schema.get("$ref"), schema.get("anyOf")
            if isinstance(reference, str):
                rest = {name: value for name, value in schema.items() if name != "$ref"}
                schema = {**self._definition(reference), **rest}
            elif isinstance(options, list):
                others = [each for each in cast("list[Schema]", options) if each.get("type") != "null"]
                if len(others) == len(cast("list[Schema]", options)) or len(others) != 1:
                    return schema, nullable or len(others) < len(cast("list[Schema]", options))
                nullable = True
                schema = {**others[0], **{name: value for name, value in schema.items() if name != "anyOf"}}
            else:
                break
        return schema, nullable

    def _definition(self, reference: str) -> Schema:
        found = self._root
        for part in reference.removeprefix("#/").split("/"):
            found = found.get(part.replace("~1", "/").replace("~0", "~"), {})
        return found


_TEXTS = {"date": Kind.DATE, "time": Kind.TIME, "date-time": Kind.MOMENT}


def _is_decimal(schema: Schema) -> bool:
    """Whether a number may be written as text, too: then that loses no digit."""
    options = cast("list[Schema]", schema.get("anyOf", []))
    return [each.get("type") for each in options] == ["number", "string"]


def _may_be_empty(made: Field, schema: Schema) -> bool:
    """Whether null is what a field means that nothing stands in, or one of its choices."""
    if made.kind is Kind.JSON or "null" in {each for each, _ in made.choices}:
        return True
    return made.nullable and (made.required or schema.get("default") is None)


def _is_or_lacks(value: Any, kind: type) -> bool:
    return value is ABSENT or value is None or isinstance(value, kind)


def _long(schema: Schema) -> Kind:
    return Kind.LONG_TEXT if schema.get("format") == "multi-line" or schema.get("maxLength", 0) > 300 else Kind.TEXT


def _choice(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _hint(schema: Schema, kind: Kind) -> str:
    """What a value must be, in a few words."""
    told: list[str] = []
    if kind is Kind.MOMENT:
        told.append("like 2026-01-31T14:30:00Z")
    elif kind is Kind.JSON:
        told.append("JSON")
    elif isinstance(schema.get("format"), str) and kind is Kind.TEXT:
        told.append(schema["format"])
    told += [words.format(schema[name]) for name, words in _BOUNDS.items() if name in schema]
    if schema.get("default") not in (None, [], {}, ""):
        told.append(f"if left out: {json.dumps(schema['default'], ensure_ascii=False)[:80]}")
    return ", ".join(told)


_BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "more than {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "less than {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "pattern": "matches {}",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
}


def _needs(schema: Schema, key: str) -> bool:
    return key in schema.get("required", ())


def _count(form: Form, name: str) -> int:
    text = form.get(f"count:{name}", "0")
    return min(int(text), MAX_ITEMS) if text.isdecimal() and len(text) < 6 else 0
