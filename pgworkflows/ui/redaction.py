"""What is hidden of payloads, wherever the dashboard shows them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any, Literal, TypeAlias, cast

from pgworkflows.history import StepKind, StepRecord
from pgworkflows.limits import quoted

What: TypeAlias = Literal["input", "output", "error", "event"]
Redact: TypeAlias = Callable[[What, Any], Any] | Iterable[str]
"""`redact(what, value)` gives what is shown instead of a payload; or names of keys whose values are masked."""

MASK = "•••"


def what_came_of(step: StepRecord) -> What:
    """What a step's output is: that of a wait is the data of the event that it took."""
    return "event" if step.kind is StepKind.WAIT_FOR else "output"


class Redaction:
    """Applies what the application said is to be hidden. What fails hides everything."""

    def __init__(self, redact: Redact | None) -> None:
        self._hide: Callable[[What, Any], Any] | None
        if redact is None or callable(redact):
            # It gets a copy: what it changes in place is what is stored, as far as we know.
            self._hide = None if redact is None else lambda what, value: redact(what, deepcopy(value))
        elif isinstance(redact, str):
            raise TypeError(f"redact must be a function or a list of keys, not one text: [{redact!r}]")
        else:
            keys = [*redact]
            for key in keys:
                if not isinstance(cast(object, key), str):
                    raise TypeError(f"redact must be a function or a list of keys; {quoted(key)} is no text")
            hidden = frozenset(key.casefold() for key in keys)
            self._hide = lambda _, value: masked(value, hidden)

    def shown(self, what: What, value: Any) -> Any:
        """A payload as it may be seen; None stays None, for there is nothing in it."""
        if self._hide is None or value is None:
            return value
        try:
            return self._hide(what, value)
        except Exception as error:  # whatever it is: what cannot be redacted is not shown
            return f"(hidden: redact raised {type(error).__name__})"


def still_hidden(stored: Any, seen: Any, sent: Any) -> bool:
    """Whether something of what was hidden of a stored value has been sent back as it was seen."""
    if stored == seen:
        return False
    if sent == seen:
        return True
    if isinstance(stored, dict) and isinstance(seen, dict) and isinstance(sent, dict):
        ones, others, back = cast("tuple[dict[str, Any], ...]", (stored, seen, sent))
        return any(still_hidden(ones.get(key), others[key], back[key]) for key in others if key in back)
    if isinstance(stored, list) and isinstance(seen, list) and isinstance(sent, list):
        return any(map(still_hidden, *cast("tuple[list[Any], ...]", (stored, seen, sent))))
    return False


def masked(value: Any, keys: frozenset[str]) -> Any:
    """A JSON value in which the values of some keys, in small letters, are masked, at any depth."""
    if isinstance(value, dict):
        items = cast("dict[str, Any]", value).items()
        return {key: MASK if key.casefold() in keys else masked(inner, keys) for key, inner in items}
    if isinstance(value, list):
        return [masked(inner, keys) for inner in cast("list[object]", value)]
    return value


def holds_mask(value: Any) -> bool:
    """Whether some text in a JSON value is a mask that somebody has sent back."""
    ahead: list[Any] = [value]
    while ahead:
        each = ahead.pop()
        if each == MASK:
            return True
        if isinstance(each, dict):
            ahead += cast("dict[str, Any]", each).values()
        elif isinstance(each, list):
            ahead += cast("list[object]", each)
    return False
