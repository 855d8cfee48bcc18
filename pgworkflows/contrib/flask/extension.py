"""The extension: an engine for each application, made from its configuration."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flask import Flask, current_app

from pgworkflows.contrib.flask.commands import commands
from pgworkflows.contrib.flask.context import AppContext
from pgworkflows.contrib.flask.settings import settings_from
from pgworkflows.contrib.flask.state import KEY, engine_of, worker_options
from pgworkflows.definition import Workflow
from pgworkflows.engine import WorkflowEngine
from pgworkflows.errors import ConfigurationError
from pgworkflows.payloads import PayloadCodec
from pgworkflows.plugins import Plugin
from pgworkflows.worker import Worker


class PgWorkflows:
    """Gives Flask applications an engine: one each, however many share this object.

    `engine` is the current application's, and stands in `app.extensions["pgworkflows"]`. Step functions run in the
    application context. Nothing connects before it is used, so an application can be made anywhere, also before a
    fork. The parameters are those of WorkflowEngine; the rest is configuration, `PGWORKFLOWS_…`.
    """

    def __init__(
        self,
        app: Flask | None = None,
        *,
        workflows: Iterable[Workflow[Any, Any]] = (),
        plugins: Iterable[Plugin] = (),
        codec: PayloadCodec | None = None,
        read_codecs: Iterable[PayloadCodec] = (),
    ) -> None:
        self._workflows = tuple(workflows)
        self._plugins = tuple(plugins)
        self._codec = codec
        self._read_codecs = tuple(read_codecs)
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask, *, workflows: Iterable[Workflow[Any, Any]] = ()) -> None:
        """Make the engine of an application, with these workflows as well, and its command `flask pgworkflows`. Raises
        ConfigurationError."""
        if KEY in app.extensions:
            raise ConfigurationError(f"application {app.name!r} has its pgworkflows already: call init_app once")
        settings = settings_from(app.config)
        app.extensions[KEY] = WorkflowEngine(
            settings.conninfo,
            workflows=(*self._workflows, *workflows),
            schema=settings.schema,
            plugins=(AppContext(app), *self._plugins),
            retention=settings.retention,
            codec=self._codec,
            read_codecs=self._read_codecs,
            listen_conninfo=settings.listen_conninfo,
        )
        app.cli.add_command(commands)

    @property
    def engine(self) -> WorkflowEngine:
        """The engine of the current application. Raises RuntimeError outside of one."""
        return engine_of(current_app)

    def worker(self, **options: Any) -> Worker:
        """A worker of the current application, as it is configured but for the `options` given."""
        return self.engine.worker(**worker_options(current_app, **options))

    def start(self, app: Flask, **options: Any) -> None:
        """Work in a thread of this process, as the application is configured but for the `options` given. Where
        processes are forked, call it after the fork. Raises ConfigurationError."""
        engine_of(app).start(**worker_options(app, **options))

    def stop(self, app: Flask) -> None:
        """Stop what `start` has started: steps in flight end, or are released."""
        engine_of(app).stop()
