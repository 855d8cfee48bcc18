"""What the scripts have in common: how they are called, how they look at the database, and what they tell.

A script takes `SCENARIO N SETTING`, reads `$DATABASE_URL` and prints one JSON line. Each peer has an environment of its
own, so this module needs nothing but psycopg, which all of them bring.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, LiteralString, NoReturn

import psycopg

from bench.figures import Figures

# How many steps at each end of a long run are averaged.
END_OF_LONG_RUN = 100


def database_url() -> str:
    """The database made for this one measurement."""
    return os.environ["DATABASE_URL"]


def setting() -> str:
    """The system's setting, as the script was called; each script says what it means."""
    return sys.argv[3]


def answer(scenarios: Mapping[str, Callable[[int], Figures]]) -> NoReturn:
    """Run the scenario that was asked for, print its figures, and end at once, whatever threads there are."""
    figures = scenarios[sys.argv[1]](int(sys.argv[2]))
    print(json.dumps(figures), flush=True)
    os._exit(0)


class Watch:
    """A look at the database over an open connection of its own: the same means for every system."""

    def __init__(self, url: str) -> None:
        self._conn = psycopg.connect(url, autocommit=True)

    def value(self, query: LiteralString, *parameters: object) -> Any:
        """The first column of the one row."""
        row = self._conn.execute(query, parameters).fetchone()
        return None if row is None else row[0]

    def until(self, wanted: object, query: LiteralString, *parameters: object, pause_s: float = 0.001) -> None:
        """Look every millisecond, or as told, until the value is there."""
        while self.value(query, *parameters) != wanted:
            time.sleep(pause_s)


def rates(runs: int, starting_s: float, draining_s: float) -> Figures:
    """The figures of the scenario `throughput`."""
    return {
        "start_per_s": runs / starting_s,
        "runs_per_s": runs / draining_s,
        "steps_per_s": 5 * runs / draining_s,
    }


def pace(stamps_s: list[float], steps: int) -> Figures:
    """The figures of the scenario `long`: a step's milliseconds among the first and among the last."""
    assert len(stamps_s) == steps, "the run was replayed while it was measured"
    end = min(END_OF_LONG_RUN, steps // 4)
    return {
        "first_ms_per_step": (stamps_s[end] - stamps_s[0]) / end * 1000,
        "last_ms_per_step": (stamps_s[-1] - stamps_s[-1 - end]) / end * 1000,
    }
