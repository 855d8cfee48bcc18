"""`pgworkflows worker` in processes of its own: one, or several under a supervisor that is told to stop, killed, hung
up and told to begin anew, while runs go on."""

from __future__ import annotations

import inspect
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from bouncing import pooled
from terminals import Terminal
from waiting import until
from working import ROOT, children, rows, value

from pgworkflows import Worker, WorkflowClient
from pgworkflows.cli import working

APPLICATION = """
import os, sys
sys.path.insert(0, {programs!r})
import stories
from pgworkflows import WorkflowEngine

stories.url = os.environ["DATABASE_URL"]
engine = WorkflowEngine(workflows=stories.WORKFLOWS)
"""


class Command:
    """`pgworkflows worker …`, and what it says."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, url: str) -> None:
        self.process = process
        self._log = log
        self._url = url

    def said(self) -> str:
        return self._log.read_text()

    def await_words(self, words: str) -> None:
        until(lambda: re.search(words, self.said()), f"it says {words!r}")

    def workers(self) -> set[int]:
        """The processes whose workers are registered."""
        return {pid for (pid,) in rows(self._url, "select pid from pgworkflows.workers")}

    def await_workers(self, number: int) -> set[int]:
        return until(lambda: found if len(found := self.workers()) == number else set(), f"{number} workers live")

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        """Its exit status, once it has ended."""
        return self.process.wait(30)


class Shop:
    """An application in a folder of its own: `app:engine`, with the stories of tests/programs."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder
        self.module = folder / "app.py"
        self.module.write_text(APPLICATION.format(programs=str(ROOT / "tests" / "programs")))
        rows(
            url,
            "create table public.calls (n bigint generated always as identity, run_id uuid, step_id text, "
            "attempt integer, pid integer); create table public.gates (name text primary key)",
        )

    @contextmanager
    def work(self, *options: str, stdin: int = subprocess.DEVNULL, **variables: str) -> Generator[Command]:
        """A worker of this application; whatever is left of it is killed at the end."""
        log = self.folder / f"{len(list(self.folder.iterdir()))}.log"
        lease = ["--lease", "4s"] if pooled() else []  # without their locks the dead are dead after that
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "pgworkflows", "worker", "app:engine", *lease, *options],
                cwd=self.folder,
                env={**os.environ, "DATABASE_URL": self.url, **variables},
                stdin=stdin,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        command = Command(process, log, self.url)
        try:
            yield command
        finally:
            begun = children(process.pid)
            process.kill()
            process.wait()
            for pid in begun:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def start(self, steps: list[str], *, gated: list[str] | None = None, number: int = 1) -> None:
        with WorkflowClient(self.url) as client:
            client.start_workflows("story", [{"steps": steps, "gated": gated or []}] * number)

    def open_gate(self, name: str) -> None:
        rows(self.url, "insert into public.gates values (%s)", name)

    def callers(self, step_id: str) -> list[int]:
        """The processes that have called a step."""
        return [pid for (pid,) in rows(self.url, "select pid from calls where step_id = %s order by n", step_id)]

    def statuses(self) -> set[str]:
        return {status for (status,) in rows(self.url, "select distinct status from pgworkflows.runs")}


@pytest.fixture
def shop(database_url: str, tmp_path: Path) -> Shop:
    return Shop(database_url, tmp_path)


def ask(port: str, path: str) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return str(taken.getsockname()[1])


def test_a_worker_that_is_killed_is_begun_anew_and_its_run_goes_on(shop: Shop) -> None:
    port = free_port()
    with shop.work("--processes", "2", "--probe", port) as command:
        before = command.await_workers(2)
        assert command.process.pid not in before
        command.await_words(r"(worker \S+ takes runs of \d+ workflows, in queues default(.|\n)*){2}")
        until(lambda: ask(port, "/ready")[0] == 200, "it is ready")
        assert {*ask(port, "/live")[1]["processes"]} == before
        shop.start(["one", "two"], gated=["one"])
        [victim] = until(lambda: shop.callers("one"), "the step begins")
        os.kill(victim, signal.SIGKILL)
        until(lambda: len(shop.callers("one")) == 2, "the step begins elsewhere")
        shop.open_gate("one")
        until(lambda: shop.statuses() == {"completed"}, "the run completes")
        until(lambda: len(command.workers() - {victim}) == 2, "another is there")
        until(lambda: ask(port, "/ready")[0] == 200, "all are ready again")
        assert command.said().count(f"worker process {victim} was ended by SIGKILL; another starts in 0.1 s") == 1
        command.send(signal.SIGTERM)
        assert command.end() == 0
    assert command.workers() == set()
    assert "2 worker processes are told to stop" in command.said()


def test_workers_end_gracefully_when_their_supervisor_is_killed(shop: Shop) -> None:
    with shop.work("--processes", "2") as command:
        command.await_workers(2)
        shop.start(["one", "two"], gated=["one"])
        until(lambda: shop.callers("one"), "the step begins")
        command.send(signal.SIGKILL)
        until(lambda: command.said().count("is stopping") == 2, "both are stopping")
        shop.open_gate("one")
        until(lambda: command.workers() == set(), "both have signed off")
    # Nothing of it was lost, nor is it called twice.
    assert (shop.statuses(), len(shop.callers("one"))) == ({"pending"}, 1)


def test_a_process_that_hangs_in_its_import_says_where_and_ends_with_its_supervisor(shop: Shop) -> None:
    fifo = shop.folder / "fifo"
    os.mkfifo(fifo)
    shop.module.write_text(f"import os\nos.write(2, b'importing')\nopen({str(fifo)!r})\n")
    with shop.work("--processes", "2") as command:
        until(lambda: "importing" in command.said(), "it imports")
        [hanging] = children(command.process.pid)
        os.kill(hanging, signal.SIGUSR1)
        command.await_words(f'File "{shop.module}", line 3 in <module>')
        command.send(signal.SIGKILL)
        until(lambda: not Path(f"/proc/{hanging}").exists(), "it has ended, too")
    assert command.said().count("importing") == 1


def test_one_that_takes_long_to_be_ready_is_told_of_once_and_left_alone() -> None:
    program = (
        "import logging, sys; from datetime import timedelta; from pgworkflows import supervisor\n"
        "supervisor.START_S = 0.2\n"
        "command = [sys.executable, '-c', 'import time; time.sleep(60)']\n"
        "found = supervisor.Supervisor(command, 2, patience=timedelta(minutes=1), logger=logging.getLogger())\n"
        "raise SystemExit(found.run_forever())"
    )
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        said = re.fullmatch(r"pgworkflows: worker process (\d+) is not ready after 0.2 s: kill -USR1 \1 .*\n", line)
        assert said is not None
        assert children(process.pid) == {int(said[1])}
        process.terminate()
        assert process.wait(20) == 0
        assert process.stderr.read() == ""


def test_a_stop_under_load_loses_nothing_and_repeats_nothing(shop: Shop) -> None:
    steps = [f"step-{n}" for n in range(20)]
    with shop.work("--processes", "2") as command:
        command.await_workers(2)
        shop.start(steps, number=30)
        until(lambda: len(shop.callers("step-3")) > 3, "they are at work")
        command.send(signal.SIGINT)
        assert command.end() == 0
    assert command.workers() == set()
    assert "running" not in shop.statuses()
    with shop.work() as command:
        until(lambda: shop.statuses() == {"completed"}, "all runs complete")
    assert value(shop.url, "select count(*) from calls") == value(
        shop.url, "select count(*) from (select distinct run_id, step_id from calls) as calls"
    )
    assert value(shop.url, "select count(*) from calls") == 600


def test_hangup_replaces_workers_one_after_the_other_by_those_of_the_code_of_today(shop: Shop) -> None:
    with shop.work("--processes", "2") as command:
        before = command.await_workers(2)
        shop.module.write_text("1 / 0\n" + shop.module.read_text())
        command.send(signal.SIGHUP)
        command.await_words("the new worker process .* ended with status 2 before it was ready: the others stay")
        assert command.workers() == before
        shop.module.write_text(shop.module.read_text().removeprefix("1 / 0\n"))
        shop.start(["one"], gated=["one"])
        until(lambda: shop.callers("one"), "the step begins")
        shop.open_gate("one")
        command.send(signal.SIGHUP)
        seen: list[set[int]] = []

        def replaced() -> bool:
            seen.append(command.workers())
            return len(seen[-1]) == 2 and not seen[-1] & before

        until(replaced, "both are replaced")
        assert {len(each) for each in seen} <= {2, 3}
        assert len(shop.callers("one")) == 1
        command.send(signal.SIGTERM)
        assert command.end() == 0


def test_it_waits_for_as_long_as_workers_take_their_time() -> None:
    assert inspect.signature(Worker).parameters["grace"].default == working.GRACE


def test_a_module_that_cannot_be_imported_ends_the_supervisor_and_shows_the_place(shop: Shop) -> None:
    shop.module.write_text("import os\n\nengine = 1 / 0\n")
    with shop.work("--processes", "3") as command:
        assert command.end() == 2
    assert command.said().count("ZeroDivisionError: division by zero") == 2  # with the lines, and in words
    assert f'File "{shop.module}", line 3, in <module>' in command.said()
    assert "pgworkflows/" not in command.said()
    assert "Error: the module app failed: ZeroDivisionError" in command.said()


def test_a_worker_that_dies_again_and_again_is_begun_ever_more_seldom(shop: Shop) -> None:
    shop.module.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    with shop.work("--processes", "2") as command:
        until(lambda: command.said().count("SIGSEGV") >= 4, "it has died four times")
        pauses = [float(each) for each in re.findall(r"another starts in ([\d.]+) s", command.said())]
        assert pauses[3] >= 0.4
        command.send(signal.SIGTERM)
        assert command.end() == 0
    assert "Fatal Python error" not in command.said()


def test_a_system_that_starts_no_processes_is_asked_ever_more_seldom_and_said_so() -> None:
    program = (
        "import logging; from datetime import timedelta; from pgworkflows.supervisor import Supervisor\n"
        "supervisor = Supervisor(['/none/here'], 2, patience=timedelta(0), logger=logging.getLogger())\n"
        "raise SystemExit(supervisor.run_forever())"
    )
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for _ in range(3):
            assert "no worker process can be started: [Errno 2] No such file" in process.stderr.readline()
        process.terminate()
        assert process.wait(20) == 0
        assert len(process.stderr.readlines()) < 3


def test_at_a_terminal_control_c_is_for_the_supervisor_who_lets_steps_end(shop: Shop) -> None:
    """A step that does not end holds it up, until a second Ctrl-C."""
    command = [sys.executable, "-m", "pgworkflows", "worker", "app:engine", "--processes", "1"]
    with Terminal(command, {**os.environ, "DATABASE_URL": shop.url}, folder=shop.folder) as terminal:
        until(lambda: rows(shop.url, "select 1 from pgworkflows.workers"), "a worker is there")
        shop.start(["one", "two"], gated=["one"])
        until(lambda: shop.callers("one"), "the step begins")
        terminal.types("\x03")
        terminal.shows("is stopping, with 1 runs in hand")
        assert terminal.process.poll() is None
        terminal.types("\x03")
        assert terminal.end() == 0
        assert "Traceback" not in terminal.text
    assert rows(shop.url, "select 1 from pgworkflows.workers") == []
    assert shop.statuses() == {"pending"}


def test_the_end_of_its_terminal_ends_a_supervisor_and_is_no_wish_for_new_processes(shop: Shop) -> None:
    command = [sys.executable, "-m", "pgworkflows", "worker", "app:engine", "--processes", "1"]
    with Terminal(command, {**os.environ, "DATABASE_URL": shop.url}, folder=shop.folder) as terminal:
        until(lambda: rows(shop.url, "select 1 from pgworkflows.workers"), "a worker is there")
        terminal.hang_up()
        assert terminal.process.wait(20) == 0
    assert rows(shop.url, "select 1 from pgworkflows.workers") == []


def test_one_that_stands_still_is_killed_by_the_third_signal_and_the_exit_status_tells(shop: Shop) -> None:
    with shop.work("--processes", "1") as command:
        [pid] = command.await_workers(1)
        os.kill(pid, signal.SIGSTOP)
        for _ in range(3):
            command.send(signal.SIGTERM)
            time.sleep(0.3)  # one that comes while another is pending would not count
        until(lambda: "was ended by SIGKILL" in command.said(), "it is killed")
        assert command.end() == 1


class Systemd:
    """The socket of systemd's, and what comes there."""

    def __init__(self, folder: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.address = str(folder / "notify")
        self._socket.bind(self.address)
        self._socket.settimeout(20)
        self.heard: list[list[str]] = []

    def await_words(self, word: str) -> None:
        while not self.heard or word not in self.heard[-1]:
            self.heard.append(self._socket.recv(4096).decode().splitlines())

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def systemd(tmp_path: Path) -> Generator[Systemd]:
    found = Systemd(tmp_path)
    yield found
    found.close()


@pytest.mark.parametrize("options", [[], ["--processes", "2"]], ids=["one process", "supervised"])
def test_systemd_hears_when_it_is_ready_and_that_it_lives_and_stops(
    shop: Shop, systemd: Systemd, options: list[str]
) -> None:
    often = "1000000" if not options else "60000000"  # a busy machine may keep a process silent for some seconds
    with shop.work(*options, NOTIFY_SOCKET=systemd.address, WATCHDOG_USEC=often) as command:
        systemd.await_words("READY=1")
        assert len(command.workers()) == (2 if options else 1)
        assert all("READY=1" not in each for each in systemd.heard[:-1])
        assert "WATCHDOG=1" in systemd.heard[-1]
        for _ in () if options else range(2):
            systemd.heard.clear()
            systemd.await_words("WATCHDOG=1")
        shop.start(["one"], gated=["one"])
        until(lambda: shop.callers("one"), "the step begins")
        command.send(signal.SIGTERM)
        systemd.await_words("STOPPING=1")
        assert command.process.poll() is None
        shop.open_gate("one")
        assert command.end() == 0
    assert shop.statuses() == {"completed"}


def test_a_worker_that_systemds_watchdog_misses_is_ended_and_says_where_it_hung(shop: Shop, systemd: Systemd) -> None:
    fifo = shop.folder / "fifo"
    os.mkfifo(fifo)
    with shop.work("--processes", "1", NOTIFY_SOCKET=systemd.address, WATCHDOG_USEC="2500000") as command:
        systemd.await_words("READY=1")
        with WorkflowClient(shop.url) as client:
            client.start_workflow("holder", str(fifo))
        [pid] = until(lambda: shop.callers("hold"), "the step begins")
        command.await_words(f"worker process {pid} says nothing any more: it is ended")
        command.await_words(f"worker process {pid} was ended by SIGABRT; another starts")
        assert "in hold_the_lock_of_python" in command.said()
