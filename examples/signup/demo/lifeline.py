"""Runs a module as a program that ends when its parent does, however that died.

usage: python -m examples.signup.demo.lifeline MODULE   (stdin: a pipe that the parent holds open)
"""

from __future__ import annotations

import os
import runpy
import sys
import threading


def _end_with_parent() -> None:
    """Waits for the end of stdin, which comes when the parent is gone, and ends the process."""
    while os.read(0, 1024):
        pass
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, name="lifeline", daemon=True).start()
    sys.argv[:] = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
