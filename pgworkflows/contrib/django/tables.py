"""The names of the library's tables as Django writes them."""

from __future__ import annotations

from pgworkflows.contrib.django import conf


def table(name: str) -> str:
    """A table in the schema of the settings. Django puts a quote at both ends of the name; those between are ours."""
    schema = conf.schema_name().replace('"', '""')
    return f'{schema}"."{name}'
