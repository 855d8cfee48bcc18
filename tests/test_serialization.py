"""Codecs: what is stored comes back as its annotation says, and what would be lost or refused is not stored."""

from __future__ import annotations

import collections
import enum
import functools
import gc
import io
import itertools
import json
import math
import threading
import types
import typing
import weakref
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NewType, NoReturn, Optional, TypeVar, Union
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from naming import named
from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    Json,
    RootModel,
    SecretBytes,
    SecretStr,
    computed_field,
    field_serializer,
    field_validator,
)
from pydantic.dataclasses import dataclass as pydantic_dataclass
from typing_extensions import TypedDict

from pgworkflows.errors import SerializationError
from pgworkflows.serialization import PLAIN, Codec, codec_for, codec_for_return, encode_plain

WHAT = "the result of step 'charge'"

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    lambda children: (
        st.lists(children)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), children)
    ),
    max_leaves=20,
)


class Color(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


class Word(enum.StrEnum):
    HELLO = "hello"


class User(BaseModel):
    id: UUID
    email: str
    born: date | None = None
    balance: Decimal = Decimal("0.00")


class Order(BaseModel):
    user: User
    lines: list[tuple[str, int]] = []
    tags: set[str] = set()
    placed: datetime
    patience: timedelta = timedelta(0)


@dataclass
class Point:
    x: float
    y: float
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Slotted:
    name: str
    parts: tuple[Point, ...] = ()


@pydantic_dataclass
class Checked:
    day: date


class Pair(NamedTuple):
    left: int
    right: date


class Row(TypedDict):
    name: str
    when: datetime


class Loose(BaseModel):
    value: Any = None
    more: float | None = None


class Widget:
    """What pydantic does not know, as ORM models are."""


UserId = NewType("UserId", int)
USER = User(id=UUID(int=7), email="ä@example.com", born=date(2000, 2, 29), balance=Decimal("1.50"))
NOW = datetime(2030, 1, 31, 9, 30, 0, 123456, tzinfo=UTC)


def exactly_equal(left: Any, right: Any) -> bool:
    """Equal, and of the same types all the way down: 1, 1.0 and True differ."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return list(left) == list(right) and all(exactly_equal(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(exactly_equal, left, right))
    if isinstance(left, float):
        return left == right and math.copysign(1, left) == math.copysign(1, right)
    return bool(left == right)


@given(json_values)
def test_every_json_value_comes_back_exactly(value: Any) -> None:
    text, restored = PLAIN.roundtrip(value, WHAT)
    assert exactly_equal(restored, value)
    assert exactly_equal(PLAIN.decode(text, WHAT), value)
    assert exactly_equal(json.loads(text), value)


@given(json_values)
def test_the_first_run_sees_what_a_replay_sees(value: Any) -> None:
    for annotation in (
        Any,
        dict,
        list[Any],
        dict[str, Any] | list[Any] | None,
        int | float | str,
        Loose,
        set[str],
        bytes,
    ):
        codec = codec_for(annotation)
        try:
            text, restored = codec.roundtrip(value, WHAT)
        except SerializationError:
            continue
        assert codec.decode(text, WHAT) == restored
        assert codec.roundtrip(restored, WHAT)[1] == restored


@given(st.text())
def test_any_text_is_kept_or_refused_and_never_changed(value: str) -> None:
    try:
        text, restored = PLAIN.roundtrip({value: [value]}, WHAT)
    except SerializationError:
        assert "\0" in value or any(0xD800 <= ord(letter) <= 0xDFFF for letter in value)
        return
    assert restored == {value: [value]}
    text.encode()


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (User, USER),
        (Order, Order(user=USER, lines=[("a", 1)], tags={"x"}, placed=NOW, patience=timedelta(days=1.5))),
        (list[User], [USER, USER]),
        (dict[str, User], {"a": USER}),
        (User | None, None),
        (Optional[User], USER),  # noqa: UP045  (both spellings)
        (Union[int, User], USER),  # noqa: UP007
        (Point, Point(1.5, -0.0, NOW)),
        (Slotted, Slotted("s", (Point(1, 2),))),
        (Checked, Checked(date(2030, 1, 1))),
        (Pair, Pair(1, date(2030, 1, 1))),
        (Row, {"name": "n", "when": NOW}),
        (datetime, NOW),
        (date, date(2030, 1, 1)),
        (time, time(12, 30)),
        (timedelta, timedelta(days=3, microseconds=5)),
        (Decimal, Decimal("12345678901234567890.123456789")),
        (UUID, UUID(int=1)),
        (bytes, b"abc"),
        (Path, Path("/a/b")),
        (Color, Color.RED),
        (Level, Level.LOW),
        (Word, Word.HELLO),
        (Literal["a", 1], 1),
        (UserId, 5),
        (Annotated[int, Field(gt=0)], 5),
        (set[int], {1, 2, 3}),
        (frozenset[Color], frozenset({Color.RED})),
        (tuple[int, str], (1, "a")),
        (tuple[int, ...], (1, 2, 3)),
        (collections.deque[int], collections.deque([1, 2])),
        (dict[UUID, Color], {UUID(int=1): Color.RED}),
        (dict[int, str], {1: "a"}),
        (Mapping[str, Any], {"a": 1}),
        (Mapping[str, Decimal], {"a": Decimal("1.0")}),
        (RootModel[list[int]], RootModel[list[int]]([1, 2])),
        (None, None),
        (bool, True),
        (int, 10**100),
        (float, 1e-300),
        (str, "\u2028 \U0001f600 \\u0000 \x7f"),
        (dict, {"a": [1]}),
        (list, [{"a": 1}]),
        (dict[str, Any], {"a": [1, {"b": None}]}),
        (list[dict[str, Any]], [{"a": 1}]),
        (dict[str, Any] | None, None),
        (int | str, "1"),
        (float | None, 1.5),
    ],
    ids=named,
)
def test_annotated_values_are_restored(annotation: Any, value: Any) -> None:
    codec = codec_for(annotation)
    text, restored = codec.roundtrip(value, WHAT)
    assert type(restored) is type(value)
    assert restored == value
    replayed = codec.decode(text, WHAT)
    assert type(replayed) is type(value)
    assert replayed == value


def test_without_annotation_models_become_json_values() -> None:
    value = {"user": USER, "at": NOW, "amounts": (Decimal("1.0"), {1}), "point": Point(1, 2), 5: Color.RED}
    assert PLAIN.roundtrip(value, WHAT)[1] == {
        "user": {"id": str(USER.id), "email": "ä@example.com", "born": "2000-02-29", "balance": "1.50"},
        "at": "2030-01-31T09:30:00.123456Z",
        "amounts": ["1.0", [1]],
        "point": {"x": 1, "y": 2, "at": None},
        "5": "red",
    }


def test_text_is_compact_and_readable() -> None:
    assert PLAIN.encode({"a": [1, None, True, "ä"], "b": 1e16}, WHAT) == '{"a":[1,null,true,"ä"],"b":1e+16}'
    assert encode_plain({"a": 1}, WHAT) == '{"a":1}'


def test_keys_that_json_has_not_are_written_as_pydantic_writes_them() -> None:
    assert PLAIN.roundtrip({UUID(int=1): 1, date(2030, 1, 1): 2}, WHAT)[1] == {str(UUID(int=1)): 1, "2030-01-01": 2}


def test_whitespace_around_json_that_was_written_in_sql_is_read() -> None:
    for codec in (PLAIN, codec_for(dict), codec_for(dict[str, int])):
        assert codec.decode(' \n{"a" : 1}\t ', WHAT) == {"a": 1}


async def never_awaited() -> None: ...


def unstorable() -> dict[str, Callable[[], Any]]:
    return {
        "NaN": lambda: math.nan,
        "infinity": lambda: math.inf,
        "minus infinity": lambda: -math.inf,
        "NUL": lambda: "a\0b",
        "NUL behind a backslash": lambda: "\\\0",
        "a lone surrogate": lambda: "\ud800",
        "two lone surrogates": lambda: "\ud83d\ude00",
        "a generator": lambda: (number for number in (1, 2)),
        "an endless iterator": lambda: itertools.count(),
        "a map": lambda: map(str, [1]),
        "an iterator": lambda: iter([1]),
        "an open file": lambda: io.StringIO("text"),
        "a coroutine": lambda: never_awaited(),
        "an unknown object": lambda: Widget(),
        "a plain object": lambda: object(),
        "a class": lambda: Widget,
        "a function": lambda: len,
        "a module": lambda: math,
        "a range": lambda: range(3),
        "dict keys": lambda: {}.keys(),
        "an exception": lambda: ValueError("x"),
        "bytes that are no text": lambda: b"\xff",
        "a fraction": lambda: Widget,
        "a secret": lambda: SecretStr("s3cret"),
        "secret bytes": lambda: SecretBytes(b"s3cret"),
        "an int of too many digits": lambda: 10**5000,
        "a memoryview": lambda: memoryview(b"x"),
        "an event": lambda: threading.Event(),
        "colliding keys": lambda: {1: "a", "1": "b"},
        "colliding true": lambda: {True: "a", "true": "b"},
        "colliding UUIDs": lambda: {UUID(int=1): "a", str(UUID(int=1)): "b"},
        "a NaN key": lambda: {math.nan: 1},
        "a NUL key": lambda: {"\0": 1},
    }


@pytest.mark.parametrize(
    "wrap", [lambda v: v, lambda v: [1, v], lambda v: {"a": {"b": (v,)}}], ids=["bare", "list", "dict"]
)
@pytest.mark.parametrize("name", unstorable())
def test_what_would_be_lost_or_refused_is_no_result(name: str, wrap: Callable[[Any], Any]) -> None:
    for annotation in (Any, dict, list[Any], dict[str, Any], Any | None):
        with pytest.raises(SerializationError, match=r"^the result of step 'charge' "):
            codec_for(annotation).roundtrip(wrap(unstorable()[name]()), WHAT)


@pytest.mark.parametrize("name", sorted(unstorable()))
def test_nor_inside_of_models_and_dataclasses(name: str) -> None:
    @dataclass
    class Held:
        value: Any = None

    class Holder(BaseModel):
        model_config = ConfigDict(extra="allow")
        inner: Loose | Held | None = None

    make = unstorable()[name]
    for value in (
        lambda: Loose(value=make()),
        lambda: Loose(value=[{"a": make()}]),
        lambda: Held(make()),
        lambda: Holder(inner=Loose(value=make())),
        lambda: Holder(inner=Held(make())),
        lambda: Holder.model_validate({"another": make()}),
    ):
        for codec in (PLAIN, codec_for(Loose), codec_for(Held), codec_for(Holder), codec_for(Loose | Held | Holder)):
            with pytest.raises(SerializationError, match=r"^the result of step 'charge' "):
                codec.roundtrip(value(), WHAT)


def test_an_open_file_is_not_even_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("a\nb\n")
    with path.open() as file:
        for codec, value in ((PLAIN, file), (PLAIN, Loose(value=file)), (codec_for(Loose), Loose(value=[file]))):
            with pytest.raises(SerializationError, match="only once"):
                codec.roundtrip(value, WHAT)
        assert file.read() == "a\nb\n"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_in_typed_fields_is_refused_where_pydantic_writes_null(value: float) -> None:
    @dataclass
    class Sample:
        reading: float | None

    for annotation, sample in (
        (Loose, Loose(more=value)),
        (Sample, Sample(value)),
        (list[float | None], [value]),
        (dict[str, float], {"a": value}),
        (float, value),
        (tuple[float, ...], (value,)),
    ):
        for codec in (codec_for(annotation), PLAIN):
            with pytest.raises(SerializationError):
                codec.roundtrip(sample, WHAT)


def test_a_secret_is_kept_where_a_model_says_how() -> None:
    class Login(BaseModel):
        password: SecretStr

        @field_serializer("password", when_used="json")
        def reveal(self, value: SecretStr) -> str:
            return value.get_secret_value()

    assert codec_for(Login).roundtrip(Login(password=SecretStr("s3cret")), WHAT) == (
        '{"password":"s3cret"}',
        Login(password=SecretStr("s3cret")),
    )


def test_a_text_of_asterisks_is_no_secret() -> None:
    assert codec_for(Loose).roundtrip(Loose(value="**********"), WHAT)[1] == Loose(value="**********")


def test_what_a_model_excludes_is_not_stored_and_not_looked_at() -> None:
    class Session(BaseModel):
        name: str
        connection: Any = Field(default=None, exclude=True)

    restored = codec_for(Session).roundtrip(Session(name="a", connection=iter([])), WHAT)[1]
    assert restored == Session(name="a")


def test_circles_and_depths_are_refused() -> None:
    circle: list[Any] = []
    circle.append(circle)
    loose = Loose()
    loose.value = loose
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (circle, {"a": circle}, loose, deep):
        for codec in (PLAIN, codec_for(list), codec_for(Loose), codec_for(list[Any] | Loose)):
            with pytest.raises(SerializationError, match="cannot be stored as JSON|as its annotation says"):
                codec.roundtrip(value, WHAT)
    while deep:  # or the interpreter takes it apart recursively
        deep = deep.pop()


def test_errors_name_the_place() -> None:
    with pytest.raises(SerializationError) as refusal:
        PLAIN.encode({"items": [{"price": 1.0}, {"price": math.nan}]}, WHAT)
    assert str(refusal.value).startswith(f"{WHAT} cannot be stored as JSON: at ['items'][1]['price'] ")


@pytest.mark.parametrize(
    ("annotation", "value", "restored"),
    [
        (User, {"id": str(UUID(int=7)), "email": "ä@example.com", "born": "2000-02-29", "balance": "1.50"}, USER),
        (datetime, "2030-01-31T09:30:00.123456Z", NOW),
        (int, "5", 5),
        (int, 2.0, 2),
        (float, 1, 1.0),
        (str, UUID(int=0), str(UUID(int=0))),
        (dict, Loose(value=1), {"value": 1, "more": None}),
        (set[int], [1, 2, 2], {1, 2}),
        (list[int], (1, 2), [1, 2]),
    ],
    ids=named,
)
def test_a_value_whose_json_fits_the_annotation_is_restored_as_it_says(
    annotation: Any, value: Any, restored: Any
) -> None:
    codec = codec_for(annotation)
    text, first = codec.roundtrip(value, WHAT)
    assert first == restored
    assert type(first) is type(restored)
    assert codec.decode(text, WHAT) == restored


@pytest.mark.parametrize(
    ("annotation", "value", "shown"),
    [
        (User, {"email": "a"}, "User"),
        (User, 5, "User"),
        (User, None, "User"),
        (int, "x", "int"),
        (str, 5, "str"),
        (bool, [], "bool"),
        (None, 5, "None"),
        (dict, [], "dict"),
        (list, {}, "list"),
        (dict[str, Any], None, "dict[str, Any]"),
        (dict[str, int], {"a": "x"}, "dict[str, int]"),
        (list[User], [USER, 1], "list[tests.test_serialization.User]"),
        (int | None, "x", "int | None"),
        (Literal["a"], "b", "Literal['a']"),
    ],
    ids=named,
)
def test_a_value_that_does_not_fit_its_annotation_is_refused(annotation: Any, value: Any, shown: str) -> None:
    with pytest.raises(SerializationError) as refusal:
        codec_for(annotation).roundtrip(value, WHAT)
    message = str(refusal.value)
    assert message.startswith(f"{WHAT} is not ")
    assert shown.rpartition(".")[2] in message
    assert "annotation" in message


@pytest.mark.parametrize("annotation", [User, int, dict, list[int], None, dict[str, int]])
def test_a_stored_value_that_does_not_fit_any_more_is_a_clear_error(annotation: Any) -> None:
    with pytest.raises(SerializationError, match="as it is stored, is not .*earlier code"):
        codec_for(annotation).decode('["x"]', WHAT)


@pytest.mark.parametrize("text", ["", "{", "nonsense", "[1] 2"])
def test_a_stored_value_that_is_no_json_is_a_clear_error(text: str) -> None:
    for annotation in (Any, dict, User):
        with pytest.raises(SerializationError, match="as it is stored"):
            codec_for(annotation).decode(text, WHAT)


def test_errors_show_no_values() -> None:
    class Card(BaseModel):
        number: int

    def fail(action: Callable[[], Any]) -> str:
        with pytest.raises(SerializationError) as refusal:
            action()
        error = refusal.value
        assert error.__cause__ is None
        assert error.__suppress_context__
        return str(error)

    codec = codec_for(Card)
    assert "4111" not in fail(lambda: codec.roundtrip({"number": "4111x"}, WHAT))
    assert "4111" not in fail(lambda: codec.decode('{"number": "4111x"}', WHAT))


class Both(BaseModel):
    name: str = Field(alias="fullName")


class Choice(BaseModel):
    name: str = Field(validation_alias=AliasChoices("name", "n"), serialization_alias="title")


class OnlyRead(BaseModel):
    name: str = Field(validation_alias="fullName")
    note: str = Field(default="", validation_alias="comment")


class TwoNames(BaseModel):
    name: str = Field(default="nobody", validation_alias="given", serialization_alias="shown")
    inner: OnlyRead | None = None


class Swapped(BaseModel):
    a: int = Field(alias="b")
    b: int = Field(alias="a")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Both(fullName="x"), '{"fullName":"x"}'),
        (Choice(name="x"), '{"name":"x"}'),
        (OnlyRead.model_validate({"fullName": "x", "comment": "y"}), '{"name":"x","note":"y"}'),
        (
            TwoNames.model_validate({"given": "x", "inner": {"fullName": "y"}}),
            '{"name":"x","inner":{"name":"y","note":""}}',
        ),
        (Swapped(a=1, b=2), '{"b":2,"a":1}'),
    ],
    ids=named,
)
def test_fields_are_written_by_alias_where_that_comes_back_and_else_by_name(value: BaseModel, text: str) -> None:
    codec = codec_for(type(value))
    assert codec.roundtrip(value, WHAT) == (text, value)
    assert codec.decode(text, WHAT) == value


def test_a_model_that_cannot_come_back_as_it_was_is_refused() -> None:
    class Lossy(BaseModel):
        number: int

        @field_serializer("number")
        def write(self, number: int) -> int:
            return number // 2

    class Unreadable(BaseModel):
        day: date

        @field_serializer("day")
        def write(self, day: date) -> str:
            return f"{day:%d.%m.%Y}"

    with pytest.raises(SerializationError, match="comes back from JSON as another"):
        codec_for(Lossy).roundtrip(Lossy(number=5), WHAT)
    with pytest.raises(SerializationError, match=r"is not .*Unreadable.*day: "):
        codec_for(Unreadable).roundtrip(Unreadable(day=date(2030, 1, 31)), WHAT)


def test_what_is_nested_too_deeply_to_be_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_deep(text: str) -> Any:
        raise RecursionError

    monkeypatch.setattr("pgworkflows.jsontext.parse_json", too_deep)
    with pytest.raises(SerializationError, match="nested too deeply"):
        PLAIN.roundtrip([1], WHAT)


def test_round_trip_fields_and_computed_fields() -> None:
    class Square(BaseModel):
        side: int
        raw: Json[list[int]]

        @computed_field
        def area(self) -> int:
            return self.side**2

    square = Square(side=2, raw="[1,2]")  # type: ignore[arg-type]  # pydantic takes the text
    text, restored = codec_for(Square).roundtrip(square, WHAT)
    assert restored == square
    assert json.loads(text) == {"side": 2, "raw": "[1,2]"}


def test_errors_of_the_users_own_hooks_are_serialization_errors() -> None:
    class Broken(BaseModel):
        a: int = 1

        @field_serializer("a")
        def write(self, value: int) -> int:
            raise LookupError("no")

    class Picky(BaseModel):
        a: int = 1

        @field_validator("a")
        @classmethod
        def read(cls, value: int) -> int:
            raise LookupError(value)

    with pytest.raises(SerializationError, match="cannot be stored"):
        codec_for(Broken).roundtrip(Broken(), WHAT)
    with pytest.raises(SerializationError, match="LookupError"):
        codec_for(Picky).roundtrip(Picky(), WHAT)
    with pytest.raises(SerializationError, match="LookupError"):
        codec_for(Picky).decode('{"a":1}', WHAT)


T = TypeVar("T")
B = TypeVar("B", bound=User)


class Unhashable:
    __hash__ = None  # type: ignore[assignment]  # what is tested


@pytest.mark.parametrize(
    "annotation",
    [
        Any,
        object,
        NoReturn,
        typing.Never,
        T,
        Widget,
        list[Widget],
        Any | None,
        Iterator[int],
        Generator[int, None, None],
        AsyncIterator[int],
        typing.Awaitable[int],
        typing.Self,
        "Nonsense",
        typing.ForwardRef("Missing"),
        5,
        [],
        Annotated[Widget, []],
        Fraction(1, 2),
    ],
    ids=named,
)
def test_an_annotation_that_says_nothing_or_is_not_known_counts_as_none(annotation: Any) -> None:
    assert codec_for(annotation) is PLAIN


def test_an_iterable_comes_back_as_a_list() -> None:
    restored = codec_for(Iterable[date]).roundtrip([date(2030, 1, 1)], WHAT)[1]
    assert restored == [date(2030, 1, 1)]
    assert codec_for(Iterable).roundtrip([1], WHAT)[1] == [1]


def test_a_type_variable_with_a_bound_is_its_bound() -> None:
    assert codec_for(B).annotation is User


def test_codecs_are_made_once_and_the_order_of_a_union_counts() -> None:
    assert codec_for(User) is codec_for(User)
    assert codec_for(list[User]) is codec_for(list[User])
    assert codec_for(int | str) is not codec_for(str | int)
    unhashable = Annotated[int, []]
    assert codec_for(unhashable).decode("5", WHAT) == 5
    assert codec_for(unhashable) is codec_for(unhashable)


def returns_user() -> User: ...  # type: ignore[empty-body]
def returns_text_annotation() -> "list[User]": ...  # type: ignore[empty-body]  # noqa: UP037
def returns_nothing_known() -> Missing: ...  # type: ignore[name-defined]  # noqa: F821
def returns_user_from_unknown(a: Missing) -> User: ...  # type: ignore[name-defined, empty-body]  # noqa: F821
def returns_widget() -> Widget: ...  # type: ignore[empty-body]
def returns_none() -> None: ...
def unannotated(): ...  # type: ignore[no-untyped-def]


class Service:
    def method(self) -> User: ...  # type: ignore[empty-body]

    @classmethod
    def of_class(cls) -> User: ...  # type: ignore[empty-body]

    @staticmethod
    def static() -> User: ...  # type: ignore[empty-body]

    def __call__(self) -> User: ...  # type: ignore[empty-body]


class SlottedCall:
    __slots__ = ()

    def __call__(self) -> User: ...  # type: ignore[empty-body]


@dataclass
class UnhashableCall:
    name: str = ""

    def __call__(self) -> User: ...  # type: ignore[empty-body]


def wrapped(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def wrapper(*args: Any) -> Any: ...

    return wrapper


@pytest.mark.parametrize(
    "fn",
    [
        returns_user,
        returns_user_from_unknown,
        Service().method,
        Service.of_class,
        Service.static,
        Service(),
        SlottedCall(),
        UnhashableCall(),
        functools.partial(returns_user),
        functools.partial(functools.partial(Service().method)),
        functools.cache(returns_user),
        wrapped(returns_user),
        User,
    ],
    ids=named,
)
def test_the_return_annotation_is_found(fn: Callable[..., Any]) -> None:
    assert codec_for_return(fn).annotation is User
    assert codec_for_return(fn) is codec_for(User)


@pytest.mark.parametrize(
    "fn",
    [
        unannotated,
        returns_nothing_known,
        returns_widget,
        lambda: 1,
        len,
        "".join,
        functools.partial(len),
        functools.partial(int.from_bytes),
        Widget,
        types.SimpleNamespace,
    ],
    ids=named,
)
def test_a_function_that_says_nothing_returns_plain_json(fn: Callable[..., Any]) -> None:
    assert codec_for_return(fn) is PLAIN


def test_other_forms_of_functions() -> None:
    assert codec_for_return(returns_text_annotation).annotation == list[User]
    assert codec_for_return(returns_none).roundtrip(None, WHAT) == ("null", None)
    assert codec_for_return(dict).roundtrip({"a": 1}, WHAT)[1] == {"a": 1}

    class Local(BaseModel):
        a: int = 1

    def create() -> Local:
        return Local()

    assert codec_for_return(create).annotation is Local


def test_neither_functions_nor_their_closures_are_kept_alive() -> None:
    class Payload:
        pass

    def make() -> tuple[Callable[[], User], weakref.ref[Payload]]:
        payload = Payload()

        def create() -> User:
            _ = payload
            return USER

        return create, weakref.ref(payload)

    create, payload = make()
    assert codec_for_return(create).annotation is User
    assert codec_for_return(create).annotation is User
    del create
    gc.collect()
    assert payload() is None


def test_threads_may_share_codecs() -> None:
    failures: list[BaseException] = []
    barrier = threading.Barrier(4)

    def work() -> None:
        class Mine(BaseModel):
            a: int

        try:
            barrier.wait(10)
            for number in range(300):
                for value in (Mine(a=number), USER, {"a": [number, {"b": number}]}):
                    codec = codec_for(type(value))
                    assert codec.roundtrip(value, WHAT)[1] == value
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_plain_json_never_meets_pydantic(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_pydantic(*args: Any, **options: Any) -> Any:
        raise AssertionError("pydantic was asked")

    monkeypatch.setattr("pgworkflows.jsontext.to_jsonable_python", no_pydantic)
    for annotation, value in ((Any, {"a": [1]}), (dict[str, Any], {"a": [1]}), (str | None, "ä"), (list, [1.5])):
        codec = codec_for(annotation)
        text, restored = codec.roundtrip(value, WHAT)
        assert restored == value
        assert codec.decode(text, WHAT) == value


def test_a_default_factory_is_no_loss() -> None:
    @dataclass
    class Made:
        name: str
        numbers: list[int] = field(default_factory=list)

    assert codec_for(Made).roundtrip(Made("a"), WHAT)[1] == Made("a")


def test_a_codec_says_what_it_is_for() -> None:
    assert isinstance(PLAIN, Codec)
    assert codec_for(list[int]).annotation == list[int]
