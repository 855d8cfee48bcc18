"""Payloads at rest: a codec of the user's may encrypt or compress them; what it makes stands in an envelope.

An envelope is JSON: `{"pgworkflows:encoded":"<name of the codec>","data":"<its text>"}`. Whatever is none is read as it
is, so that a codec can be turned on, changed and turned off while runs are under way.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Protocol, TypeGuard, cast

from pgworkflows.errors import ConfigurationError, SerializationError
from pgworkflows.history import ChildEnd, ErrorInfo
from pgworkflows.jsontext import ENCODED, encode_plain, parse_json
from pgworkflows.limits import MAX_JSON_LENGTH, checked_identifier

_ENVELOPE = re.compile(rf'\s*\{{\s*"{ENCODED}"\s*:')


class PayloadCodec(Protocol):
    """Encrypts or compresses payloads. Threads share it. `name` is stored with what it has encoded."""

    @property
    def name(self) -> str: ...

    def encode(self, text: str) -> str | None:
        """What is stored instead of the JSON `text`; None to store that as it is."""
        ...

    def decode(self, data: str) -> str:
        """The text that `encode` made `data` of. Raises whatever it likes if it cannot, for want of a key perhaps."""
        ...


class Unreadable(Exception):
    """An envelope that nobody here can open: the end of a sentence that begins with the run."""


class Payloads:
    """The codecs of a client: one writes, all read, each what bears its name. Immutable: threads may share it."""

    def __init__(self, codec: PayloadCodec | None = None, read_codecs: Iterable[PayloadCodec] = ()) -> None:
        """Raises ConfigurationError if two codecs have one name, TypeError or ValueError for what is none."""
        self._codec = codec
        self._by_name: dict[str, PayloadCodec] = {}
        for each in (*(() if codec is None else (codec,)), *read_codecs):
            _check(each)
            if each.name in self._by_name:
                raise ConfigurationError(
                    f"two codecs are named {each.name!r}: the name tells which one reads a payload"
                )
            self._by_name[each.name] = each

    @property
    def writes(self) -> bool:
        """Whether anything is encoded."""
        return self._codec is not None

    def seal(self, text: str, what: str) -> str:
        """JSON text as it is stored; a null, which says nothing, as it is. Raises SerializationError if the codec
        raises, or makes too much of it."""
        codec = self._codec
        if codec is None or text == "null":
            return text
        try:
            data = codec.encode(text)
        except Exception as error:  # whose message may hold what is to be kept secret
            raise SerializationError(
                f"{what} cannot be stored: codec {codec.name!r} raised {type(error).__name__}"
            ) from error
        if data is None:
            return text
        if not _is_text(data):
            raise SerializationError(
                f"{what} cannot be stored: codec {codec.name!r} returned {type(data).__name__}; encode must return text"
            )
        made = f"what codec {codec.name!r} made of {what}"
        envelope = f'{{"{ENCODED}":{encode_plain(codec.name, "its name")},"data":{encode_plain(data, made)}}}'
        if len(envelope) > MAX_JSON_LENGTH:
            raise SerializationError(
                f"{made} cannot be stored: it has {len(envelope):,} characters, and at most {MAX_JSON_LENGTH:,} can be"
            )
        return envelope

    def open(self, text: str) -> str:
        """Stored JSON text as it was before it was encoded, if it was. Raises Unreadable."""
        return self._decoded(json.loads(text)) if _ENVELOPE.match(text) else text

    def open_part(self, value: Any) -> str | None:
        """The JSON text in a JSON value, None if that is no envelope. Raises Unreadable."""
        return self._decoded(value) if _is_envelope(value) else None

    def seal_error(self, error: ErrorInfo) -> ErrorInfo:
        """An error as it is stored: type, step and child stay as they are, message and traceback are in an envelope in
        the traceback's place. Raises SerializationError."""
        if self._codec is None:
            return error
        text = json.dumps({"message": error.message, "traceback": error.traceback}, ensure_ascii=False)
        sealed = self.seal(text, f"the {error.type} that was raised")
        child = error.child
        if child is not None and child.error is not None:
            child = replace(child, error=self._sealed_row(child.error))
        if sealed == text:
            return replace(error, child=child)
        return replace(error, message=f"(encoded by {self._codec.name!r})", traceback=sealed, child=child)

    def open_error(self, error: ErrorInfo) -> ErrorInfo:
        """A stored error as it was before it was encoded, if it was. Raises Unreadable."""
        child = error.child
        if child is not None and child.error is not None:
            child = ChildEnd(child.run_id, child.status, self.open_error_row(child.error))
        message, traceback = self._opened_parts(error.message, error.traceback)
        return replace(error, message=message, traceback=traceback, child=child)

    def open_error_row(self, error: Mapping[str, Any]) -> dict[str, Any]:
        """The same for a JSON value."""
        opened = dict(error)
        if isinstance(error.get("traceback"), str):
            opened["message"], opened["traceback"] = self._opened_parts(error.get("message"), error["traceback"])
        child: Mapping[str, Any] | None = error.get("child")
        if child is not None and child["error"] is not None:
            opened["child"] = {**child, "error": self.open_error_row(child["error"])}
        return opened

    def shown(self, value: Any) -> Any:
        """A JSON value for somebody to look at: an envelope that cannot be opened stands for itself."""
        try:
            text = self.open_part(value)
        except Unreadable:
            return value
        return value if text is None else parse_json(text)

    def shown_error(self, error: dict[str, Any] | None) -> dict[str, Any] | None:
        """The same for an error."""
        if error is None:
            return None
        try:
            return self.open_error_row(error)
        except Unreadable:
            return error

    def _decoded(self, envelope: Mapping[str, Any]) -> str:
        name, data = envelope[ENCODED], envelope.get("data")
        if not isinstance(name, str) or not isinstance(data, str):
            raise Unreadable("has a payload that is marked as encoded but is no envelope")
        codec = self._by_name.get(name)
        if codec is None:
            raise Unreadable(
                f"has payloads of codec {name!r}, which is not given: pass it as codec= or in read_codecs="
            )
        try:
            text = codec.decode(data)
            parse_json(text)
        except Exception as error:
            raise Unreadable(
                f"has payloads that codec {name!r} cannot decode ({type(error).__name__}): give it the key they "
                f"were encoded with"
            ) from error
        return text

    def _opened_parts(self, message: Any, traceback: str | None) -> tuple[Any, str | None]:
        """A message and a traceback, which may be an envelope that holds both."""
        if traceback is None or not _ENVELOPE.match(traceback):
            return message, traceback
        text = self.open(traceback)
        try:
            parts = parse_json(text)
            return str(parts["message"]), parts["traceback"]
        except (TypeError, KeyError):
            raise Unreadable("has an error whose envelope holds something else") from None

    def _sealed_row(self, error: Mapping[str, Any]) -> dict[str, Any]:
        told = ErrorInfo(str(error.get("type")), str(error.get("message")), error.get("traceback"))
        sealed = self.seal_error(told)
        return {**error, "message": sealed.message, "traceback": sealed.traceback}


AS_IS = Payloads()
"""Without codecs."""


def _is_envelope(value: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict) and next(iter(cast("dict[str, Any]", value)), None) == ENCODED


def _is_text(data: object) -> bool:
    return isinstance(data, str)


def _check(codec: object) -> None:
    if not callable(getattr(codec, "encode", None)) or not callable(getattr(codec, "decode", None)):
        raise TypeError(f"a codec has name, encode and decode; {type(codec).__name__} has not")
    checked_identifier(getattr(codec, "name", None), "the name of a codec")
