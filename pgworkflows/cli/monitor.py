"""The command that shows how all is at a glance, again and again: `top`."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import NoReturn

import click
from rich.live import Live

from pgworkflows.cli.commands import current_client
from pgworkflows.cli.exits import Exit
from pgworkflows.cli.following import AWAY
from pgworkflows.cli.options import DURATION
from pgworkflows.cli.output import console, json_option, print_json
from pgworkflows.cli.picture import Picture, as_json_of, drawn, look
from pgworkflows.cli.wording import one_line
from pgworkflows.inspection import Inspector

SHORTEST_EVERY = timedelta(milliseconds=200)
LOOK_EVERY_S = 0.1
"""How often a key, or another size of the terminal, is looked for."""


@click.command()
@click.option("--every", type=DURATION, default="2 seconds", show_default=True, help="How often to look anew.")
@click.option(
    "--window", type=DURATION, default="5 minutes", show_default=True, help="Of which time to show what happened."
)
@click.option("--once", is_flag=True, help="Print it once, and end; so without a terminal.")
@json_option
def top(every: timedelta, window: timedelta, once: bool, as_json: bool) -> None:
    """Show throughput, lag, backlog, workers and workflows, live.

    q or Ctrl-C ends it. --json prints it once.
    """
    every_s = max(every, SHORTEST_EVERY).total_seconds()
    inspector = Inspector(current_client())
    picture = look(inspector, window)
    if as_json:
        print_json(as_json_of(picture))
    elif once or not console().is_terminal or console().is_dumb_terminal:
        console().print(drawn(picture, console().width), soft_wrap=True)
    else:
        _show(Watch(lambda: look(inspector, window), picture, every_s), every_s)


class Watch:
    """Looks again and again, in a thread of its own: the terminal is looked after however long the database is away."""

    def __init__(self, ask: Callable[[], Picture], first: Picture, every_s: float) -> None:
        self.picture = first
        self.problem: str | None = None
        self.error: Exception | None = None
        self._ask = ask
        self._every_s = every_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pgworkflows-top", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()

    def _run(self) -> None:
        """Waits for the database and the clock, and ends with the command."""
        while not self._ended.wait(self._every_s):
            try:
                self.picture = self._ask()
                self.problem = None
            except AWAY as error:
                self.problem = one_line(str(error))
            except Exception as error:  # a fault: whoever shows pictures raises it
                self.error = error
                return


def _show(watch: Watch, every_s: float) -> None:
    """Until q or Ctrl-C; the terminal is then as it was."""
    screen = console()
    shown: object = None
    try:
        with (
            _ending_at_sigterm(),
            _keys() as pressed,
            Live(console=screen, screen=True, auto_refresh=False) as live,
            watch,
        ):
            while watch.error is None:
                size = screen.size
                now = (watch.picture, watch.problem, size)
                if now != shown:
                    shown = now
                    live.update(drawn(watch.picture, size.width, size.height, watch.problem, every_s), refresh=True)
                if pressed(LOOK_EVERY_S) in ("q", "Q"):
                    return
    except KeyboardInterrupt:
        raise click.exceptions.Exit(Exit.FINE) from None
    assert watch.error is not None
    raise watch.error


@contextmanager
def _keys() -> Generator[Callable[[float], str]]:
    """Asks which key was pressed within a time; "" for none, and where no keys can be read."""
    if not sys.stdin.isatty():

        def none(wait_s: float) -> str:
            time.sleep(wait_s)
            return ""

        yield none
        return
    descriptor = sys.stdin.fileno()

    def pressed(wait_s: float) -> str:
        if not select.select([descriptor], [], [], wait_s)[0]:
            return ""
        read = os.read(descriptor, 64)
        if not read:  # the terminal is gone
            raise KeyboardInterrupt
        return read.decode(errors="replace")[-1]

    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield pressed
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


@contextmanager
def _ending_at_sigterm() -> Generator[None]:
    """SIGTERM and SIGHUP leave the terminal as it was, too."""

    def leave(number: int, _frame: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
