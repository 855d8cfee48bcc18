"""The bounds on names, keys and numbers that the caller gives, checked before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

MAX_IDENTIFIER_LENGTH = 256
MAX_PRIORITY = 1000
MAX_RETRIES = 1_000_000
MAX_JSON_LENGTH = 64 * 1024 * 1024
"""In characters: PostgreSQL takes a statement of up to 1 GB, in which a payload is quoted and may stand twice."""
MAX_ERROR_LENGTH = 100_000
"""In characters: of the message of an error and of its traceback, as they are stored."""
PRIORITIES: Mapping[str, int] = MappingProxyType({"high": 100, "normal": 0, "low": -100})


def checked_identifier(value: object, what: str) -> str:
    """`value` if it is text of 1 to 256 characters that PostgreSQL can store; else TypeError or ValueError."""
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a string, not {type(value).__name__}")
    if not 0 < len(value) <= MAX_IDENTIFIER_LENGTH:
        raise ValueError(f"{what} must have 1 to {MAX_IDENTIFIER_LENGTH} characters; this one has {len(value)}")
    if not is_storable(value):
        raise ValueError(f"{what} must not hold NUL or lone surrogates: {quoted(value)}")
    return value


def checked_priority(value: object) -> int:
    """The number of `"high"` (100), `"normal"` (0), `"low"` (-100), or of an int within ±1000. Raises TypeError or
    ValueError."""
    if isinstance(value, str):
        if value not in PRIORITIES:
            raise ValueError(f"priority {quoted(value)} is unknown: use 'high', 'normal', 'low' or a number")
        return PRIORITIES[value]
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"priority must be a name or an int, not {type(value).__name__}")
    if abs(value) > MAX_PRIORITY:
        raise ValueError(f"priority must lie within ±{MAX_PRIORITY}, not {value}")
    return value


def checked_retries(value: object) -> int:
    """A number of retries from 0; else TypeError or ValueError."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"retries must be an int, not {type(value).__name__}")
    if not 0 <= value <= MAX_RETRIES:
        raise ValueError(f"retries must lie within 0 and {MAX_RETRIES}, not {value}")
    return value


def checked_flag(value: object, what: str) -> bool:
    """`value` if it is True or False; else TypeError."""
    if not isinstance(value, bool):
        raise TypeError(f"{what} must be True or False, not {type(value).__name__}")
    return value


def shortened(text: str) -> str:
    """`text`, without its middle if it is longer than what is stored of an error: what is wrong stands at an end."""
    left_out = len(text) - MAX_ERROR_LENGTH
    if left_out <= 0:
        return text
    half = MAX_ERROR_LENGTH // 2
    return f"{text[:half]} … {left_out:,} characters left out … {text[-half:]}"


def quoted(value: object) -> str:
    """`value` as error messages show it: shortened, whatever it is and whatever its own methods do."""
    try:
        text = repr(value)
    except Exception:  # nested too deeply, more digits than Python writes, or the caller's own
        return "a very large number" if isinstance(value, int) else f"an unreadable {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:97]}..."


def cleaned(text: str) -> str:
    """`text` in one line, for logs and terminals: what is not printable, such as an escape sequence or a character that
    turns the direction of writing, as Python's literals have it."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def storable(text: str) -> str:
    """`text` with what PostgreSQL cannot keep, NUL and lone surrogates, written as escapes."""
    return text if is_storable(text) else text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()


def is_storable(text: str) -> bool:
    """Whether PostgreSQL can keep `text`: it holds neither NUL nor lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text
