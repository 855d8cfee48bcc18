"""What the setting PGWORKFLOWS says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, cast

from django.conf import settings as djangos
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from pgworkflows.durations import parse_positive_duration
from pgworkflows.payloads import PayloadCodec, Payloads
from pgworkflows.plugins import Plugin, checked_plugins
from pgworkflows.schema import DEFAULT_SCHEMA, checked_schema

WORKER_OPTIONS = ("queues", "threads", "max_runs", "lease", "poll_interval", "grace")


@dataclass(frozen=True)
class Settings:
    """PGWORKFLOWS, checked; what it does not say is as here."""

    schema: str = DEFAULT_SCHEMA
    plugins: tuple[Plugin, ...] = ()
    codec: PayloadCodec | None = None
    read_codecs: tuple[PayloadCodec, ...] = ()
    retention: str | float | None = None
    listen_conninfo: str | None = None
    worker: Mapping[str, Any] = field(default_factory=dict[str, Any])


@cache
def settings() -> Settings:
    """The settings. Raises ImproperlyConfigured with all that is wrong with them."""
    read, problems = examine(getattr(djangos, "PGWORKFLOWS", {}))
    if problems:
        raise ImproperlyConfigured("PGWORKFLOWS: " + "; ".join(problems))
    return read


def schema_name() -> str:
    """The name of the schema, for whom the rest comes too early; what is wrong with it, the checks say."""
    given: Any = getattr(djangos, "PGWORKFLOWS", {})
    try:
        return checked_schema(given.get("SCHEMA", DEFAULT_SCHEMA))
    except (AttributeError, TypeError, ValueError):
        return DEFAULT_SCHEMA


def examine(given: Any) -> tuple[Settings, list[str]]:
    """The settings in a dict, and what is wrong with them."""
    if not isinstance(given, dict):
        return Settings(), [f"it must be a dict, not {type(given).__name__}"]
    entries = cast("Mapping[Any, Any]", given)
    problems = [f"{key!r} is unknown: the keys are {', '.join(_READERS)}" for key in entries if key not in _READERS]
    values: dict[str, Any] = {}
    for key, read in _READERS.items():
        if key in entries:
            try:
                values[key.lower()] = read(entries[key])
            except (ImportError, TypeError, ValueError) as error:
                problems.append(f"{key!r}: {error}")
    return Settings(**values), problems


def _object(given: Any) -> Any:
    """What a dotted path names; if that is a class or a function, what it makes."""
    found = import_string(given) if isinstance(given, str) else given
    return found() if isinstance(given, str) and callable(found) else found


def _plugins(given: Any) -> tuple[Plugin, ...]:
    if isinstance(given, str):
        raise TypeError("it must be a list of dotted paths, not one string")
    return checked_plugins([_object(each) for each in given])


def _codecs(given: Any) -> tuple[PayloadCodec, ...]:
    if isinstance(given, str):
        raise TypeError("it must be a list of dotted paths, not one string")
    codecs = tuple(_object(each) for each in given)
    Payloads(None, codecs)
    return codecs


def _codec(given: Any) -> PayloadCodec | None:
    codec = None if given is None else _object(given)
    Payloads(codec, ())
    return codec


def _retention(given: Any) -> Any:
    if given is not None:
        parse_positive_duration(given, "retention")
    return given


def _conninfo(given: Any) -> str | None:
    if given is not None and not isinstance(given, str):
        raise TypeError(f"it must be a connection string, not {type(given).__name__}")
    return given


def _worker(given: Any) -> Mapping[str, Any]:
    if not isinstance(given, dict):
        raise TypeError(f"it must be a dict of options of Worker, not {type(given).__name__}")
    options = cast("Mapping[Any, Any]", given)
    unknown = [str(name) for name in options if name not in WORKER_OPTIONS]
    if unknown:
        raise ValueError(f"{', '.join(unknown)} is no option of Worker: these are {', '.join(WORKER_OPTIONS)}")
    return dict(options)


_READERS: Mapping[str, Callable[[Any], Any]] = {
    "SCHEMA": checked_schema,
    "PLUGINS": _plugins,
    "CODEC": _codec,
    "READ_CODECS": _codecs,
    "RETENTION": _retention,
    "LISTEN_CONNINFO": _conninfo,
    "WORKER": _worker,
}
