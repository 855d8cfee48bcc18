"""Django migrations of the library: each runs the SQL file of its name, as `WorkflowEngine.migrate` would."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from django.apps import apps
from django.db import OperationalError, router, transaction
from django.db.migrations.operations.base import Operation, OperationCategory
from django.db.migrations.state import ModelState

from pgworkflows.borrowed import borrowed
from pgworkflows.contrib.django import conf
from pgworkflows.database import Locked, Params, Row
from pgworkflows.migrate import LOCK_TIMEOUT_MS, apply_in_turns, migrations, script_of
from pgworkflows.schema import statement

LOCK_NOT_AVAILABLE = "55P03"


class Apply(Operation):
    """Run a migration of the library, unless the database has it: forward only, and whatever name the schema has.

    The first also tells Django of the models, which are unmanaged: as they are now, so that there is never a change of
    theirs to make a migration of.
    """

    reversible = False
    reduces_to_sql = True
    category = OperationCategory.SQL

    def __init__(self, name: str) -> None:
        self.name = name

    def deconstruct(self) -> tuple[str, list[Any], dict[str, Any]]:
        return (self.__class__.__qualname__, [self.name], {})

    def state_forwards(self, app_label: str, state: Any) -> None:
        if self.name == migrations()[0].name:
            for model in apps.get_app_config(app_label).get_models():
                state.add_model(ModelState.from_model(model))

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        connection = schema_editor.connection
        if connection.vendor != "postgresql" or not router.allow_migrate(connection.alias, app_label):
            return
        migration = next(each for each in migrations() if each.name == self.name)
        schema = conf.schema_name()
        if schema_editor.collect_sql:
            for text in script_of(migration, schema):
                schema_editor.execute(text, params=None)
        else:
            apply_in_turns(_Editing(schema_editor), schema, migration)

    def describe(self) -> str:
        return f"pgworkflows: {self.name}"


class _Editing:
    """A schema editor's connection, in its transaction."""

    def __init__(self, schema_editor: Any) -> None:
        self._editor = schema_editor
        self._lent = borrowed(schema_editor.connection)

    def fetch(self, sql: str, params: Params) -> list[Row]:
        with _lock_is_held():
            return self._lent.fetch(sql, params)

    def run(self, sql: str) -> None:
        with _lock_is_held():
            self._editor.execute(sql, params=None)

    @contextmanager
    def together(self) -> Generator[None]:
        # A savepoint, made by Django itself, which knows of its transaction.
        with transaction.atomic(using=self._editor.connection.alias):
            self.fetch(statement("set_lock_timeout", conf.schema_name()), (str(LOCK_TIMEOUT_MS),))
            yield


@contextmanager
def _lock_is_held() -> Generator[None]:
    try:
        yield
    except OperationalError as error:
        cause: Any = error.__cause__
        if LOCK_NOT_AVAILABLE in (getattr(cause, "sqlstate", None), getattr(cause, "pgcode", None)):
            raise Locked(str(error).strip()) from error
        raise
