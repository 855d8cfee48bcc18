"""What mypy --strict and pyright make of workflows; the cases are the files in `typing/`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
CASES = "tests/typing"
CHECKERS = {
    "mypy": ["mypy", "--strict", CASES],
    "pyright": ["pyright", "--pythonpath", sys.executable, CASES],
}


@pytest.mark.parametrize("checker", CHECKERS)
def test_type_checkers_infer_what_the_cases_say(checker: str) -> None:
    pytest.importorskip(checker)
    run = subprocess.run(
        [sys.executable, "-m", *CHECKERS[checker]], cwd=PROJECT, capture_output=True, text=True, timeout=110
    )
    assert run.returncode == 0, run.stdout + run.stderr
