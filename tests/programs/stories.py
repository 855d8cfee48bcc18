"""The workflows of worker processes in tests. Their steps note their calls in the table `calls`, which survives the
process, and wait at gates that a test opens."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from typing import Any

import psycopg
from pydantic import BaseModel

from pgworkflows import Step, Steps, Workflow, current_step, workflow

url = ""


class Story(BaseModel):
    """Which steps there are, and which of them wait at the gate of their name."""

    steps: list[str]
    gated: list[str] = []


def call(gated: bool) -> int:
    """Note the call; wait at the gate; the process id."""
    current = current_step()
    with psycopg.connect(url, autocommit=True, prepare_threshold=None) as conn:
        conn.execute(
            "insert into public.calls (run_id, step_id, attempt, pid) values (%s, %s, %s, %s)",
            [current.run_id, current.step_id, current.attempt, os.getpid()],
        )
        while gated and not conn.execute("select from public.gates where name = %s", [current.step_id]).fetchall():
            time.sleep(0.01)
    return os.getpid()


def hold_the_lock_of_python(fifo: str) -> int:
    """Note the call; let no other thread of the process run, nor its heart beat, until something comes; the process
    id."""
    pid = call(False)
    gate = os.open(fifo, os.O_RDWR)
    ctypes.PyDLL(None).read(gate, ctypes.create_string_buffer(1), 1)
    return pid


def die() -> None:
    call(False)
    os.kill(os.getpid(), signal.SIGKILL)


@workflow("story")
def story(step: Step, input: Story) -> Steps[list[int]]:
    pids: list[int] = []
    for name in input.steps:
        pids.append((yield step.run(name, call, name in input.gated)))
    return pids


@workflow("killer")
def killer(step: Step) -> Steps[None]:
    yield step.run("before", call, False)
    yield step.run("die", die)


@workflow("holder")
def holder(step: Step, input: str) -> Steps[list[int]]:
    first = yield step.run("hold", hold_the_lock_of_python, input)
    return [first, (yield step.run("after", call, False))]


WORKFLOWS: list[Workflow[Any, Any]] = [story, killer, holder]
