"""Values become JSON text that PostgreSQL keeps: nothing is written that it would refuse or that would be lost.

The C encoder of the standard library writes JSON's own types. What it does not know goes to pydantic, after a look
for what pydantic would write wrongly: iterators and open files (as lists), secrets (as asterisks).
"""

from __future__ import annotations

import inspect
import json
import json.encoder
import math
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any, cast
from uuid import UUID

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from pgworkflows.errors import SerializationError
from pgworkflows.limits import MAX_JSON_LENGTH

_ATOMS = frozenset({type(None), bool, int, str, bytes, date, datetime, time, timedelta, Decimal, UUID})
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
ENCODED = "pgworkflows:encoded"
"""The first key of an object that stands for an encoded payload, and of no other."""
_ENVELOPE = f'{{"{ENCODED}":'
_MASK = "**********"  # what pydantic writes for a secret
_scan = json.JSONDecoder().raw_decode


class _UnstorableError(Exception):
    """The fact that keeps a value from being stored, as the end of a sentence that begins with "it holds"."""


def encode_plain(value: Any, what: str) -> str:
    """`value` as JSON text without blanks; `what` names it in errors.

    Takes JSON's types and whatever pydantic can write. Raises SerializationError for NaN, infinity, NUL, lone
    surrogates, iterators, generators, open files, secrets, circular references and unknown objects.
    """
    try:
        return _text_of(value)
    except Exception as error:
        raise _refusal(error, what, value) from None


def encode_dumped(dump: Callable[[Any], Any], value: Any, what: str) -> str:
    """The same for a value that `dump(value)` turns into JSON's types. What `dump` raises is the caller's."""
    try:
        secret = _holds_secret(value)
    except (_UnstorableError, RecursionError) as error:
        raise _refusal(error, what, None) from None
    dumped = dump(value)
    try:
        return _storable(_write(_unmasked(dumped, secret)))
    except Exception as error:
        raise _refusal(error, what, dumped) from None


def plain_roundtrip(value: Any, what: str) -> tuple[str, Any]:
    """The same as `encode_plain`, and what `parse_json` makes of the text.

    Raises SerializationError also if two keys of a dict become the same in JSON, as 1 and "1" do.
    """
    text = encode_plain(value, what)
    try:
        plain = parse_json(text)
        if not equal(plain, value):
            _holds_secret(value)  # which refuses such keys
    except Exception as error:
        raise _refusal(error, what, None) from None
    return text, plain


def parse_json(text: str) -> Any:
    """The value in `text`, in JSON's types. Raises ValueError or RecursionError."""
    if text[:1] not in {" ", "\t", "\n", "\r", ""}:
        value, end = _scan(text)
        if end == len(text):
            return value
    return json.loads(text)


def equal(left: object, right: object) -> bool:
    """Whether the two are equal; not if their comparison fails or gives no truth value, for it is the user's."""
    try:
        return bool(left == right)
    except Exception:
        return False


def _text_of(value: Any) -> str:
    try:
        text = _write(value)
    except TypeError:  # a dict key that is no JSON key, a UUID for instance
        text = _write(_for_json(value))
    if text.isascii() and "\\u0000" not in text and len(text) <= MAX_JSON_LENGTH and not text.startswith(_ENVELOPE):
        return text
    return _storable(text)


def _storable(text: str) -> str:
    """`text`, unless PostgreSQL refuses its length or what is in its strings."""
    if len(text) > MAX_JSON_LENGTH:
        raise _UnstorableError(f"{len(text):,} characters of JSON, and at most {MAX_JSON_LENGTH:,} can be stored")
    if "\\u0000" in text and _NUL.search(text):
        raise _UnstorableError("a NUL character, which PostgreSQL cannot keep")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise _UnstorableError("a lone surrogate, which is no text") from None
    if text.startswith(_ENVELOPE):
        raise _UnstorableError(f"{ENCODED!r} as its first key, which marks what a codec has encoded")
    return text


def _for_json(value: Any) -> Any:
    """What the JSON encoder asks for when it does not know `value`."""
    secret = _holds_secret(value)
    try:
        written: Any = to_jsonable_python(value)
    except Exception as error:
        raise _UnstorableError(f"{type(value).__qualname__}, which cannot be written as JSON: {error}") from None
    return _unmasked(written, secret)


def _unmasked(written: Any, secret: bool) -> Any:
    """`written`, unless it shows the mask of a secret: a field's own serializer may have revealed it."""
    if secret and _MASK in repr(written):
        raise _UnstorableError("a secret, which would be stored as asterisks; give its field a serializer")
    return written


def _writer() -> Callable[[Any], str]:
    """The JSON encoder, built once: building it costs as much as encoding a small dict."""
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:  # not CPython
        return json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_for_json).encode
    # Without markers for circular references it holds no state, so threads may share it; a circle is a RecursionError.
    chunks = make(None, _for_json, json.encoder.encode_basestring, None, ":", ",", False, False, False)
    return lambda value: "".join(chunks(value, 0))


_write = _writer()


def _holds_secret(value: object) -> bool:
    """Whether a secret is in `value`. Refuses what pydantic would lose: what can be read only once, NaN, equal keys."""
    if type(value) in _ATOMS:
        return False
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _UnstorableError("NaN or infinity, which JSON does not have")
        return False
    parts = _parts(value)
    if parts is None:
        _refuse_once_only(value)
        return hasattr(value, "get_secret_value")
    found = False
    for part in parts:
        found |= _holds_secret(part)
    return found


def _refuse_once_only(value: object) -> None:
    if inspect.iscoroutine(value):
        value.close()  # else Python warns that it was never awaited
        raise _UnstorableError("a coroutine, which nobody awaits; return its result")
    if isinstance(value, Iterator):
        kind = type(cast("object", value)).__qualname__
        raise _UnstorableError(f"a {kind}, which can be read only once; return a list instead")


def _parts(value: object) -> Iterable[object] | None:
    """What `value` is made of, as far as pydantic would look into it; None for what has no parts."""
    if isinstance(value, dict):
        mapping = cast("dict[object, object]", value)
        _refuse_same_keys(mapping)
        return mapping.values()
    if isinstance(value, list | tuple | set | frozenset | deque):
        return cast("Iterable[object]", value)
    if isinstance(value, BaseModel):
        hidden = _excluded_fields(type(value))
        kept = [part for name, part in vars(value).items() if name not in hidden] if hidden else vars(value).values()
        return [*kept, *value.__pydantic_extra__.values()] if value.__pydantic_extra__ else kept
    if is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name, None) for field in fields(value)]
    return None


@lru_cache(maxsize=1024)
def _excluded_fields(model: type[BaseModel]) -> frozenset[str]:
    return frozenset(name for name, field in model.model_fields.items() if field.exclude)


def _refuse_same_keys(mapping: dict[object, object]) -> None:
    if all(type(key) is str for key in mapping):
        return
    keys = dict.fromkeys(mapping)
    try:
        written = json.loads(_write(keys))
    except TypeError:
        written = to_jsonable_python(keys)
    if len(written) < len(mapping):
        raise _UnstorableError(f"a dict of {len(mapping)} keys, of which JSON makes {len(written)}")


def _refusal(error: BaseException, what: str, value: Any) -> SerializationError:
    if isinstance(error, RecursionError):
        return SerializationError(f"{what} cannot be stored as JSON: it refers to itself or is nested too deeply")
    fact = f"it holds {error}" if isinstance(error, _UnstorableError) else str(error)
    path = _path_to_culprit(value)
    return SerializationError(f"{what} cannot be stored as JSON: {f'at {path} ' if path else ''}{fact}")


def _path_to_culprit(value: object) -> str:
    """Where in `value` the part lies that cannot be stored, as subscripts: "['items'][3]"; "" for the value itself."""
    children: Iterable[tuple[object, object]] = ()
    if isinstance(value, dict):
        children = cast("dict[object, object]", value).items()
    elif isinstance(value, list | tuple):
        children = enumerate(cast("list[object]", value))
    for key, child in children:
        try:
            _text_of(child)
        except Exception:
            return f"[{key!r}]{_path_to_culprit(child)}"
    return ""
