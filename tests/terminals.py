"""Commands in a pseudo-terminal: what they show there, and how they leave it."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from waiting import until


class Terminal:
    """A process whose standard streams are a terminal of its own; it is killed at the end of a with statement."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        width: int = 80,
        height: int = 24,
        folder: Path | None = None,
    ) -> None:
        self._mine, self._theirs = pty.openpty()
        os.set_blocking(self._mine, False)
        self._text = b""
        self.resize(width, height)
        self._before = self._settings()
        self.process = subprocess.Popen(
            [*command],
            env={**environment, "TERM": "xterm-256color"},
            cwd=folder,
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=self._theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )

    def resize(self, width: int, height: int) -> None:
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def types(self, text: str) -> None:
        os.write(self._mine, text.encode())

    @property
    def text(self) -> str:
        """All that it has shown so far."""
        try:
            while more := os.read(self._mine, 65536):
                self._text += more
        except (BlockingIOError, OSError):
            pass
        return self._text.decode(errors="replace")

    def forget(self) -> None:
        """Look only at what comes from now on."""
        assert self.text is not None
        self._text = b""

    def shows(self, text: str) -> None:
        """Wait until it has shown this."""
        until(lambda: text in self.text, f"it shows {text!r}")

    def end(self) -> int:
        """Its exit status, once it has ended."""

        def has_ended() -> bool:
            assert self.text is not None  # who writes to a terminal that nobody reads waits
            return self.process.poll() is not None

        until(has_ended, "it ends")
        status = self.process.returncode
        assert status is not None
        return status

    def is_as_before(self) -> bool:
        """Whether the terminal's settings are those that it had at first."""
        return self._settings() == self._before

    def hang_up(self) -> None:
        """Close the window."""
        os.close(self._mine)
        self._mine = -1

    def _settings(self) -> list[Any]:
        return termios.tcgetattr(self._theirs)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        for descriptor in (self._mine, self._theirs):
            if descriptor >= 0:
                os.close(descriptor)
