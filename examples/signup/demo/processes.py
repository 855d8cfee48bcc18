"""The application's processes: started with their settings, heard, and ended."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO

ROOT = Path(__file__).parents[3]
GRACE_S = 15


class Process:
    """One `python -m MODULE`, which ends with this process. What it says goes to `hear`, line by line."""

    def __init__(self, name: str, module: str, settings: Mapping[str, str], hear: Callable[[str], None]) -> None:
        self.name = name
        self._hear = hear
        self._first_line: SimpleQueue[str] = SimpleQueue()
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "examples.signup.demo.lifeline", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, **settings, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # Ctrl-C is for the demo, which ends the others in order
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        assert self._popen.stdout is not None
        self._ears = threading.Thread(target=self._listen, args=(self._popen.stdout,), daemon=True)
        self._ears.start()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._popen.pid

    @property
    def alive(self) -> bool:
        """Whether it is running."""
        return self._popen.poll() is None

    def first_line(self, timeout_s: float) -> str:
        """The first thing it says; TimeoutError when nothing comes."""
        try:
            return self._first_line.get(timeout=timeout_s)
        except Empty:
            raise TimeoutError(f"{self.name} has not started within {timeout_s:g} s") from None

    def kill(self) -> None:
        """SIGKILL: it has no chance to say good-bye."""
        self._popen.kill()
        self._popen.wait()

    def stop(self) -> int:
        """SIGTERM, and SIGKILL for one that does not heed it; its exit status."""
        self._popen.terminate()
        try:
            return self._popen.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._popen.returncode
        finally:
            self._ears.join(1)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._popen.stdin.close()
        self._popen.stdout.close()

    def _listen(self, said: IO[str]) -> None:
        """Owns the process's output; ends with it."""
        first = True
        for line in said:
            if first:
                self._first_line.put(line.strip())
                first = False
            self._hear(f"{self.name}: {line.rstrip()}")
