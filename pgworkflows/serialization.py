"""One codec for each annotation: values become JSON text, and come back as the annotation says.

JSON's own types never meet pydantic. First run equals replay: `roundtrip` gives what was stored, decoded.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from inspect import signature
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary, ref

from pydantic import TypeAdapter, ValidationError

from pgworkflows.annotations import json_types, restorable, return_annotation, shown
from pgworkflows.errors import SerializationError
from pgworkflows.jsontext import encode_dumped, encode_plain, equal, parse_json, plain_roundtrip

__all__ = ["PLAIN", "Codec", "codec_for", "codec_for_return", "encode_plain", "explained", "issues_of", "typed_codec"]

_MAX_CODECS = 2048
_MAX_ISSUES_SHOWN = 5

# Fields are read by their names too, since that is how they are written where aliases do not come back. pydantic 2.11+.
_READ_NAMES: dict[str, Any] = (
    {"by_alias": True, "by_name": True} if "by_name" in signature(TypeAdapter[Any].validate_json).parameters else {}
)


class Codec:
    """Writes the values of one annotation as JSON text and reads them back. Immutable: threads may share it."""

    __slots__ = ("__weakref__", "_adapter", "_dumps", "_exact", "annotation")

    def __init__(
        self, annotation: Any, *, adapter: TypeAdapter[Any] | None = None, exact: frozenset[type] | None = None
    ) -> None:
        """`adapter` restores the annotation; None restores nothing. What JSON gives back as one of the classes
        `exact` fits as it is; None if JSON's classes do not tell."""
        self.annotation = annotation
        self._adapter = adapter
        self._exact = exact
        self._dumps = () if adapter is None else (_dump(adapter, by_alias=True), _dump(adapter, by_alias=False))

    def encode(self, value: Any, what: str) -> str:
        """`value` as JSON text; `what` names it in errors. Raises SerializationError, as `roundtrip` does."""
        return self.roundtrip(value, what)[0]

    def decode(self, text: str, what: str) -> Any:
        """The value in `text`, as the annotation says. Raises SerializationError when it does not fit (any more)."""
        try:
            return self.load(text)
        except Exception as error:
            raise SerializationError(
                f"{what}, as it is stored, is not {shown(self.annotation)}: {explained(error)}; "
                "let the annotation take what earlier code has stored"
            ) from None

    def roundtrip(self, value: Any, what: str) -> tuple[str, Any]:
        """`value` as JSON text, and what `decode` makes of that text.

        Raises SerializationError for what JSON or PostgreSQL would refuse, lose or change unnoticed, and for a
        value that does not fit the annotation.
        """
        if self._adapter is not None and self._exact is None:
            return self._roundtrip_typed(self._adapter, value, what)
        text, plain = plain_roundtrip(value, what)
        if self._exact is None or type(plain) in self._exact:
            return text, plain
        return text, self._fitted(text, what)

    def load(self, text: str) -> Any:
        """The value in `text`; what json or pydantic raise is the caller's."""
        if self._adapter is None:
            return parse_json(text)
        if self._exact is not None:
            plain = parse_json(text)
            if type(plain) in self._exact:
                return plain
        return self._adapter.validate_json(text, **_READ_NAMES)

    def validated(self, value: Any) -> Any:
        """`value`, valid already or JSON, as the annotation says; what pydantic raises is the caller's."""
        if self._adapter is None or (self._exact is not None and type(value) in self._exact):
            return value
        try:
            return self._adapter.validate_python(value)
        except ValidationError as misfit:
            # Strict schemas take more from JSON than from Python: a date as text, a tuple as a list.
            try:
                return self._adapter.validate_json(encode_plain(value, "the value"))
            except (ValidationError, SerializationError):
                raise misfit from None

    def json_schema(self) -> dict[str, Any] | None:
        """The JSON Schema of what is loaded; None where anything is. What pydantic raises is the caller's."""
        return None if self._adapter is None else self._adapter.json_schema()

    def _fitted(self, text: str, what: str) -> Any:
        try:
            return self.load(text)
        except Exception as error:
            raise SerializationError(
                f"{what} is not {shown(self.annotation)}, as its annotation says: {explained(error)}"
            ) from None

    def _roundtrip_typed(self, adapter: TypeAdapter[Any], value: Any, what: str) -> tuple[str, Any]:
        """Write aliases, as JSON's readers expect; names where a model does not read its own aliases."""
        changed = False
        for dump in self._dumps:
            attempt = _attempt(dump, adapter, value, what)
            if attempt is not None:
                if _is_faithful(dump, attempt[1], value):
                    return attempt
                changed = True
        if changed:
            raise SerializationError(
                f"{what} comes back from JSON as another {shown(self.annotation)}: a field is written by one name and "
                "read by another, or its serializer loses something"
            )
        # It is not what the annotation says, but its JSON may be.
        text = encode_plain(value, what)
        return text, self._fitted(text, what)


PLAIN = Codec(Any)
"""For values without annotation: JSON goes in, JSON comes out."""


def codec_for(annotation: Any) -> Codec:
    """The codec of `annotation`: PLAIN for one that says nothing or that pydantic does not know."""
    try:
        # Equal unions may differ in order, and the order decides between members that both fit.
        return _cached_codec(annotation, "" if isinstance(annotation, type) else str(annotation))
    except TypeError:  # unhashable, as Annotated[int, []] is
        return _cached_codec(_Itself(annotation), "")


def codec_for_return(fn: Callable[..., Any]) -> Codec:
    """The codec of what `fn` returns, by its annotation; PLAIN if that is missing or cannot be resolved."""
    if type(fn) is FunctionType and not fn.__annotations__:
        return PLAIN
    fn = getattr(fn, "__func__", fn)
    try:
        known = _by_function.get(fn)
    except TypeError:  # no weak reference to it, or no hash
        return codec_for(return_annotation(fn))
    codec = known() if known is not None else None
    if codec is None:
        codec = codec_for(return_annotation(fn))
        _by_function[fn] = ref(codec)
    return codec


def typed_codec(annotation: Any) -> Codec:
    """The same as `codec_for`, but an annotation that pydantic does not know raises what pydantic raises."""
    annotation = restorable(annotation)
    if annotation is Any:
        return PLAIN
    adapter: TypeAdapter[Any] = TypeAdapter(annotation)
    if not getattr(adapter, "pydantic_complete", True):
        adapter.rebuild(raise_errors=True)
    return Codec(annotation, adapter=adapter, exact=json_types(annotation))


def explained(error: Exception) -> str:
    """`error` in a sentence that shows no values, which may be secret."""
    if not isinstance(error, ValidationError):
        return f"{type(error).__name__}: {error}"
    issues = issues_of(error)
    shown_issues = [_sentence(issue) for issue in issues[:_MAX_ISSUES_SHOWN]]
    if len(issues) > _MAX_ISSUES_SHOWN:
        shown_issues.append(f"and {len(issues) - _MAX_ISSUES_SHOWN} more")
    return "; ".join(shown_issues)


def issues_of(error: ValidationError) -> list[dict[str, Any]]:
    """pydantic's issues without the values: dicts with `type`, `loc`, `msg`."""
    return [dict(issue) for issue in error.errors(include_url=False, include_context=False, include_input=False)]


# The functions hold no codec, for a codec holds classes whose methods may hold the functions: nothing is leaked.
_by_function: WeakKeyDictionary[Callable[..., Any], ref[Codec]] = WeakKeyDictionary()


class _Itself:
    """A key for what has no hash: equal to nothing but itself."""

    def __init__(self, annotation: Any) -> None:
        self.annotation = annotation

    def __hash__(self) -> int:
        return id(self.annotation)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and other.annotation is self.annotation


@lru_cache(maxsize=_MAX_CODECS)
def _cached_codec(annotation: Any, _written: str) -> Codec:
    try:
        return typed_codec(annotation.annotation if isinstance(annotation, _Itself) else annotation)
    except Exception:  # whatever pydantic or a hook of the class raises: the annotation counts as none
        return PLAIN


def _sentence(issue: dict[str, Any]) -> str:
    place = ".".join(str(part) for part in issue["loc"])
    return f"{place}: {issue['msg']}" if place else str(issue["msg"])


def _dump(adapter: TypeAdapter[Any], *, by_alias: bool) -> Callable[[Any], Any]:
    return partial(adapter.dump_python, mode="json", round_trip=True, by_alias=by_alias, warnings="error")


def _attempt(dump: Callable[[Any], Any], adapter: TypeAdapter[Any], value: Any, what: str) -> tuple[str, Any] | None:
    try:
        text = encode_dumped(dump, value, what)
        return text, adapter.validate_json(text, **_READ_NAMES)
    except SerializationError:
        raise
    except Exception:  # whatever pydantic or the hooks of the user's classes raise: another way may do
        return None


def _is_faithful(dump: Callable[[Any], Any], restored: Any, value: Any) -> bool:
    """Whether nothing was lost: a default may have taken the place of a field that is read by another alias."""
    return equal(restored, value) or equal(dump(restored), dump(value))
