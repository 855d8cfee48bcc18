"""Columns of the library's tables that Django's own fields do not fit."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from django.db import models
from django.db.models.expressions import Col

if TYPE_CHECKING:
    JSONField = models.JSONField[Any, Any]
    Field = models.Field[list[str], list[str]]
else:
    from django.db.models import Field, JSONField


class JsonColumn(JSONField):
    """A column of type json, which keeps a payload as it was written. Here it is cast to jsonb wherever it is named, as
    what Django's lookups need; so keys come in another order."""

    def get_col(self, alias: str, output_field: models.Field[Any, Any] | None = None) -> Col:
        return _AsJsonb(alias, self, output_field)

    @cached_property
    def cached_col(self) -> Col:
        return _AsJsonb(self.model._meta.db_table, self)


class _AsJsonb(Col):
    def as_sql(self, compiler: Any, connection: Any) -> Any:
        text, params = super().as_sql(compiler, connection)
        return f"({text})::jsonb", params


class TextArray(Field):
    """A column of type text[], without the app django.contrib.postgres."""

    def db_type(self, connection: Any) -> str:
        return "text[]"
