"""Options and arguments that several commands have, and how their words are read."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click


def read_json(_ctx: click.Context, _param: click.Parameter, word: str | None) -> Any:
    """The value of an option: JSON, @ and the name of a file with it, or - for standard input."""
    if word is None:
        return None
    text, where = word, "this"
    try:
        if word == "-":
            text, where = sys.stdin.read(), "standard input"
        elif word.startswith("@"):
            text, where = Path(word[1:]).read_text(encoding="utf-8"), word[1:]
        return json.loads(text)
    except OSError as error:
        raise click.BadParameter(f"{word[1:]} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"{where} is no JSON: {error}") from error
