"""What an application's configuration says of its workflows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pgworkflows.errors import ConfigurationError
from pgworkflows.schema import DEFAULT_SCHEMA

PREFIX = "PGWORKFLOWS_"
OF_THE_WORKER = ("QUEUES", "THREADS", "MAX_RUNS", "LEASE", "POLL_INTERVAL", "GRACE")
KNOWN = ("DATABASE_URL", "LISTEN_URL", "SCHEMA", "RETENTION", *OF_THE_WORKER)


@dataclass(frozen=True)
class Settings:
    """`conninfo` None means what a client without one uses; `worker` has the options of Worker that are set."""

    conninfo: str | None
    listen_conninfo: str | None
    schema: str
    retention: Any
    worker: Mapping[str, Any]


def settings_from(config: Mapping[str, Any]) -> Settings:
    """The settings in a configuration. Raises ConfigurationError for a name that nobody reads."""
    given = {name.removeprefix(PREFIX): config[name] for name in config if name.startswith(PREFIX)}
    for name in given:
        if name not in KNOWN:
            known = ", ".join(PREFIX + each for each in KNOWN)
            raise ConfigurationError(f"{PREFIX}{name} is no setting of pgworkflows; these are: {known}")
    return Settings(
        conninfo=given.get("DATABASE_URL") or _of_sqlalchemy(config),
        listen_conninfo=given.get("LISTEN_URL"),
        schema=given.get("SCHEMA", DEFAULT_SCHEMA),
        retention=given.get("RETENTION"),
        worker={name.lower(): given[name] for name in OF_THE_WORKER if given.get(name) is not None},
    )


def _of_sqlalchemy(config: Mapping[str, Any]) -> str | None:
    """Flask-SQLAlchemy's database, if that is PostgreSQL: a run that is started in its session belongs there."""
    found = config.get("SQLALCHEMY_DATABASE_URI")
    render = getattr(found, "render_as_string", None)
    url = found if render is None else render(hide_password=False)
    return url if isinstance(url, str) and url.startswith("postgresql") else None
