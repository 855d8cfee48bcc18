"""The stage: a PostgreSQL server, a mail server, the web application and its workers, up while it is entered."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import psycopg
from psycopg.rows import namedtuple_row

from examples.signup import release
from examples.signup.demo.mailserver import MailServer
from examples.signup.demo.processes import Process
from examples.signup.demo.show import Show
from pgworkflows import EmbeddedPostgres, WorkflowClient

START_WITHIN_S = 30


class StageError(Exception):
    """Something did not come up, or did not play its part."""


class Stage:
    """All that the play needs. `patience` are the settings of the two workers it starts with."""

    def __init__(self, mail: MailServer, show: Show, patience: Mapping[str, str]) -> None:
        self.mail = mail
        self._show = show
        self._patience = patience
        self._stack = ExitStack()
        self.workers: list[Process] = []

    def __enter__(self) -> Stage:
        with ExitStack() as stack:
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _start(self, stack: ExitStack) -> None:
        server = stack.enter_context(EmbeddedPostgres())
        self._show.note(f"PostgreSQL: process {server.pid}, in {server.data_dir}")
        os.environ["DATABASE_URL"] = self.database_url = server.url
        release.main()
        self._conn = stack.enter_context(psycopg.connect(server.url, autocommit=True))
        self.client = stack.enter_context(WorkflowClient(server.url))
        stack.enter_context(self.mail)
        self._show.note(f"mail server: in this process, at {self.mail.url}")
        web = self._process(stack, "web", "examples.signup.app", {})
        for number in (1, 2):
            self._start_worker(stack, number, self._patience)
        self.url = web.first_line(START_WITHIN_S)
        if not self.url.startswith("http"):
            raise StageError(f"the web application did not start; it said: {self.url}")
        self._await_workers()

    def replace_workers(self, patience: Mapping[str, str]) -> None:
        """Two new workers with settings of their own, in the place of those that have ended."""
        self.workers = []
        for number in (3, 4):
            self._start_worker(self._stack, number, patience)
        self._await_workers()

    def named(self, sql: str) -> list[Any]:
        """The rows of a query, with their columns as attributes."""
        return self._conn.cursor(row_factory=namedtuple_row).execute(sql.encode()).fetchall()

    def ask(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        return self.query(sql).fetchall()

    def query(self, sql: str) -> psycopg.Cursor[tuple[Any, ...]]:
        """A query, executed."""
        return self._conn.execute(sql.encode())

    def _start_worker(self, stack: ExitStack, number: int, patience: Mapping[str, str]) -> None:
        settings = {**patience, "SMTP_URL": self.mail.url}
        self.workers.append(self._process(stack, f"worker {number}", "examples.signup.worker", settings))

    def _process(self, stack: ExitStack, name: str, module: str, settings: Mapping[str, str]) -> Process:
        process = stack.enter_context(Process(name, module, settings, self._show.note))
        self._show.note(f"{name}: process {process.pid}, python -m {module}")
        return process

    def _await_workers(self) -> None:
        deadline = time.monotonic() + START_WITHIN_S
        wanted = {worker.pid for worker in self.workers}
        while not wanted <= {pid for (pid,) in self.ask("select pid from pgworkflows.workers")}:
            ended = [worker.name for worker in self.workers if not worker.alive]
            if ended or time.monotonic() > deadline:
                raise StageError(f"the workers did not come up within {START_WITHIN_S} s; ended: {ended}")
            time.sleep(0.05)
