"""Forms made of schemas: what a form shows, it means; what cannot be read stays, with the reason."""

from __future__ import annotations

from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naming import named
from pydantic import BaseModel, Field, TypeAdapter

from pgworkflows.ui.fields import ABSENT, Kind
from pgworkflows.ui.fields import Field as FormField
from pgworkflows.ui.forms import FormMaker
from pgworkflows.ui.typed import place, remove_item, value_of


class Colour(Enum):
    RED = "red"
    NONE = None
    SEVEN = 7


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Leaf(BaseModel):
    name: str = Field(description="What it is called")
    size: int | None = None


class Tree(BaseModel):
    leaves: list[Leaf] = []
    left: Tree | None = None


class Everything(BaseModel):
    text: str
    number: int = 3
    part: float
    yes: bool
    maybe: bool | None = None
    colour: Colour
    level: Level = Level.LOW
    one_of: Literal["a", 1, True]
    day: date
    hour: time
    at: datetime
    price: Decimal
    key: UUID
    nothing: str | None
    leaf: Leaf
    leaves: list[Leaf]
    seven: int | None = 7
    names: list[str] | None = None
    either: int | list[str]
    free: dict[str, Any]
    odd_name: Annotated[str, Field(alias="a/b~c \"d'")]
    tree: Tree


GOOD: dict[str, Any] = {
    "text": " spaces\tand\nlines \n",
    "number": -12,
    "part": 1.25,
    "yes": False,
    "maybe": None,
    "colour": None,
    "level": 2,
    "one_of": True,
    "day": "2026-02-28",
    "hour": "12:30:00",
    "at": "2026-01-31T14:30:00Z",
    "price": "12.500",
    "key": "0f8fad5b-d9cb-469f-a165-70867728950e",
    "nothing": None,
    "leaf": {"name": "oak"},
    "leaves": [{"name": "elm", "size": 3}, {"name": "ash"}],
    "seven": None,
    "names": ["x", "y"],
    "either": ["z"],
    "free": {"a": [1, {"b": None}]},
    "a/b~c \"d'": "odd",
    "tree": {"leaves": [], "left": {"leaves": [{"name": "fir"}]}},
}


def schema_of(annotation: Any) -> dict[str, Any]:
    return TypeAdapter(annotation).json_schema()


def sent(top: FormField) -> dict[str, str]:
    """What a browser sends of a form that shows these fields."""
    form: dict[str, str] = {}
    for each in top.walk():
        if each.kind is Kind.LIST:
            form[f"count:{each.name}"] = str(len(each.fields))
        if each.kind in (Kind.GROUP, Kind.LIST):
            form |= {f"has:{each.name}": "1"} if each.present and not each.required else {}
        else:
            lines = "\r\n" if each.kind in (Kind.JSON, Kind.LONG_TEXT) else ""
            form[f"{'json' if each.kind is Kind.JSON else 'f'}:{each.name}"] = lines.join(each.text.split("\n"))
    return form


def through_the_browser(annotation: Any, value: Any) -> Any:
    """A value, shown in a form that is sent as it is."""
    maker = FormMaker(schema_of(annotation))
    return value_of(maker.of_form(sent(maker.of_value(value))))


def test_a_value_of_every_kind_comes_back_as_it_was_shown() -> None:
    model = Everything.model_validate(GOOD)
    assert Everything.model_validate(through_the_browser(Everything, GOOD)) == model


leaves: st.SearchStrategy[dict[str, Any]] = st.builds(dict, name=st.text(), size=st.none() | st.integers())
trees: st.SearchStrategy[dict[str, Any]] = st.recursive(
    st.builds(dict, leaves=st.lists(leaves, max_size=3), left=st.none()),
    lambda left: st.builds(dict, leaves=st.lists(leaves, max_size=2), left=st.none() | left),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(trees)
def test_trees_of_any_depth_come_back(value: dict[str, Any]) -> None:
    assert Tree.model_validate(through_the_browser(Tree, value)) == Tree.model_validate(value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=15,
)


@settings(max_examples=100, deadline=None)
@given(json_values)
def test_any_json_comes_back_from_a_schema_that_takes_any(value: Any) -> None:
    assert through_the_browser(Any, value) == value


@settings(max_examples=100, deadline=None)
@given(json_values)
def test_a_value_that_does_not_fit_is_shown_all_the_same(value: Any) -> None:
    given = {name: value for name in ("names", "day", "number", "key", "one_of", "free", "part") if value is not None}
    back = through_the_browser(Everything, given)
    assert {name: back[name] for name in given} == given


@pytest.mark.parametrize(
    ("annotation", "kind"),
    [
        (str, Kind.TEXT),
        (Annotated[str, Field(max_length=1000)], Kind.LONG_TEXT),
        (int, Kind.INTEGER),
        (int | None, Kind.INTEGER),
        (float, Kind.NUMBER),
        (Decimal, Kind.TEXT),
        (bool, Kind.CHOICE),
        (Literal["a"], Kind.CHOICE),
        (Level, Kind.CHOICE),
        (Leaf, Kind.GROUP),
        (Leaf | None, Kind.GROUP),
        (list[Leaf], Kind.LIST),
        (set[int], Kind.LIST),
        (list[Any], Kind.JSON),
        (list, Kind.JSON),
        (dict[str, int], Kind.JSON),
        (tuple[int, str], Kind.JSON),
        (Leaf | Tree, Kind.JSON),
        (Any, Kind.JSON),
        (None, Kind.JSON),
    ],
    ids=named,
)
def test_each_type_has_its_kind_of_field(annotation: Any, kind: Kind) -> None:
    assert FormMaker(schema_of(annotation)).of_value(ABSENT).kind is kind


def test_a_schema_that_refers_to_itself_ends_as_json() -> None:
    top = FormMaker(schema_of(Tree)).of_value(ABSENT)
    depths = [len(each.path) for each in top.walk()]
    assert max(depths) <= 8
    assert any(each.kind is Kind.JSON for each in top.walk())
    wide = {"type": "object", "properties": {f"p{n}": {"$ref": "#"} for n in range(9)}}
    assert len(FormMaker(wide).of_value(ABSENT).walk()) < 30_000
    broken: list[dict[str, Any]] = [
        {"$ref": "#"},
        {"$ref": "#/none"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
        {"anyOf": []},
    ]
    for schema in broken:
        assert FormMaker(schema).of_value({"a": 1}).kind is Kind.JSON


@pytest.mark.parametrize("text", ["1.5", "0x1", "\uff11\uff12", "1_000", "", "-", "9" * 500])
def test_what_is_no_whole_number_is_none(text: str) -> None:
    top = FormMaker({"type": "integer"}).of_form({"f:": text})
    assert value_of(top) is ABSENT
    assert bool(top.errors) is bool(text)
    assert top.text == text


def test_a_form_may_say_anything_of_itself() -> None:
    maker = FormMaker(schema_of(Everything))
    form = {
        "count:/leaves": "99999999999",
        "count:/names": "-1",
        "has:/tree": "2",
        "f:/number": "\0",
        "json:/free": "[" * 9999,
    }
    top = maker.of_form(form)
    value_of(top)
    assert len(top.walk()) < 500
    remove_item(top, "/leaves/7")
    remove_item(top, "/nothing")
    maker.add_item(top, "/text")
    maker.add_item(top, "")


def test_items_are_taken_out_and_those_behind_move_up() -> None:
    maker = FormMaker(schema_of(Tree))
    top = maker.of_value({"leaves": [{"name": "a"}, {"name": "b"}, {"name": "c"}]})
    remove_item(top, "/leaves/1")
    maker.add_item(top, "/leaves")
    assert [each.name for each in top.walk() if each.label == "name" and len(each.path) == 3] == [
        "/leaves/0/name",
        "/leaves/1/name",
        "/leaves/2/name",
    ]
    assert value_of(top)["leaves"] == [{"name": "a"}, {"name": "c"}, {"name": ""}]


def test_complaints_go_to_the_nearest_field() -> None:
    top = FormMaker(schema_of(Everything)).of_value(GOOD)
    issues: list[dict[str, Any]] = [
        {"loc": ("leaves", 1, "size"), "msg": "too small"},
        {"loc": ("either", "int"), "msg": "no int"},
        {"loc": ("unknown", "x"), "msg": "what"},
        {"loc": (), "msg": "all wrong"},
    ]
    place(top, issues)
    complaints = {each.name: each.errors for each in top.walk() if each.errors}
    assert complaints == {
        "/leaves/1/size": ["too small"],
        "/either": ["/int: no int"],
        "": ["/unknown/x: what", "all wrong"],
    }
