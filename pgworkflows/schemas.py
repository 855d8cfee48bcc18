"""Data from outside is checked against the schema its receiver declares, before it is stored and when it is read."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from pydantic import ValidationError

from pgworkflows.annotations import shown
from pgworkflows.errors import ConfigurationError, InvalidInputError
from pgworkflows.serialization import explained, issues_of, typed_codec

MAX_EVENT_SCHEMAS = 512
REQUIRED: Any = object()
"""The default of an input that has none."""
EVENT = "the data of the event"


class InputSchema:
    """What data must look like: a codec, and a default that stands for None. Threads may share it."""

    def __init__(self, annotation: Any, what: str, *, default: Any = REQUIRED, workflow_id: str | None = None) -> None:
        """`annotation` is whatever pydantic's TypeAdapter takes; NOTHING lets any JSON value pass as it is. `what`
        names the data in errors, such as "the input of workflow 'x'".

        Raises ConfigurationError if pydantic cannot make a schema of it.
        """
        self.what = what
        self.default = default
        self._workflow_id = workflow_id
        try:
            self._codec = typed_codec(annotation)
        except Exception as error:
            raise ConfigurationError(
                f"the schema of {what}, {shown(annotation)}, is none that pydantic takes: {error}",
                workflow_id=workflow_id,
            ) from None

    def validate(self, value: Any) -> tuple[str, Any]:
        """`value` as JSON text, and as `load` makes it of that text. Takes valid values and JSON values.

        Raises InvalidInputError if it does not fit, SerializationError if it cannot be stored.
        """
        if value is None and self.default is not REQUIRED:
            if self.default is None:
                return "null", None
            value = self.default
        try:
            valid = self._codec.validated(value)
        except Exception as error:
            raise self._misfit(error) from None
        return self._codec.roundtrip(valid, self.what)

    def load(self, text: str) -> Any:
        """The value in the JSON `text`, as the schema says; a null stands for the default, if there is one.

        Raises InvalidInputError if it does not fit.
        """
        if self.default is not REQUIRED and text.strip() == "null":
            return self.validate(None)[1]
        try:
            return self._codec.load(text)
        except Exception as error:
            raise self._misfit(error) from None

    def described(self) -> dict[str, Any] | None:
        """The JSON Schema of what is taken; None if anything is, or if pydantic can write none."""
        return self._codec.json_schema()

    def _misfit(self, error: Exception) -> InvalidInputError:
        return InvalidInputError(
            f"{self.what} does not fit {shown(self._codec.annotation)}: {explained(error)}",
            issues=issues_of(error) if isinstance(error, ValidationError) else [],
            workflow_id=self._workflow_id,
        )


def event_schema(schema: Any) -> InputSchema:
    """What the data of an event must look like. Raises ConfigurationError if pydantic cannot make a schema of it."""
    try:
        return _cached_event_schema(schema)
    except TypeError:
        return InputSchema(schema, EVENT)  # it has no hash


@lru_cache(maxsize=MAX_EVENT_SCHEMAS)
def _cached_event_schema(schema: Any) -> InputSchema:
    return InputSchema(schema, EVENT)
