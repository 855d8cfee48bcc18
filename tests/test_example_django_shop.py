"""The shop in Django as its README says: migrated, behind gunicorn, with a worker, by real requests."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pages import ROOT, blocks
from waiting import until
from working import rows, value

from pgworkflows import WorkflowClient

SHOP = ROOT / "examples" / "django_shop"
COMMANDS = [line for block in blocks(SHOP / "README.md") for line in block.text.splitlines() if block.language == "sh"]


def the_command(words: str) -> list[str]:
    """The command of the README that has these words, with this environment's programs."""
    [line] = [line for line in COMMANDS if words in line]
    program, *arguments = shlex.split(line)
    return [str(Path(sys.executable).with_name(program)), *arguments]


class Shop:
    """The shop's processes."""

    def __init__(self, url: str, log: Path) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = found.getsockname()[1]
        self._environment = {**os.environ, "DATABASE_URL": url, "GUNICORN_CMD_ARGS": f"--bind 127.0.0.1:{self.port}"}
        self._log = log.open("w")
        self.started: list[subprocess.Popen[bytes]] = []

    def run(self, words: str) -> str:
        done = subprocess.run(
            the_command(words), cwd=SHOP, env=self._environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, words: str) -> None:
        process = subprocess.Popen(
            the_command(words), cwd=SHOP, env=self._environment, stdout=self._log, stderr=self._log
        )
        self.started.append(process)

    def ask(self, path: str, data: Any = None, *, method: str = "GET") -> tuple[int, Any]:
        """A request: its status, and what came back."""
        body = None if data is None else json.dumps(data).encode()
        asked = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body, method=method)
        try:
            with urllib.request.urlopen(asked, timeout=20) as answer:
                text, status = answer.read(), answer.status
        except urllib.error.HTTPError as error:
            with error:
                text, status = error.read(), error.code
        return status, json.loads(text) if text.startswith(b"{") else None

    def answers(self) -> bool:
        try:
            return self.ask("/orders/0/")[0] == 404
        except OSError:
            return False

    def end(self) -> list[int]:
        for process in self.started:
            process.send_signal(signal.SIGTERM)
        return [process.wait(30) for process in self.started]

    def forget(self) -> None:
        for process in self.started:
            process.kill()
            process.wait(30)
        self._log.close()


@pytest.fixture
def shop(empty_database_url: str, tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(empty_database_url, tmp_path / "log")
    try:
        yield shop
    finally:
        shop.forget()


def test_the_shop_as_its_readme_says(shop: Shop, empty_database_url: str) -> None:
    url = empty_database_url
    shop.run("manage.py migrate")
    shop.start("gunicorn --workers")
    shop.start("pgworkflows worker")
    until(shop.answers, "the shop answers")
    # Too much: neither the order nor its run was ever there.
    wanted = {"customer": "ada", "article": "teapot", "quantity": 13}
    assert shop.ask("/orders/", wanted, method="POST") == (409, {"problem": "only 12 are in stock"})
    assert value(url, "select count(*) from pgworkflows.runs") == value(url, "select count(*) from orders_order") == 0
    # What is committed begins at once.
    status, made = shop.ask("/orders/", {**wanted, "quantity": 2}, method="POST")
    assert status == 201
    where = f"/orders/{made['order']}/"
    until(lambda: shop.ask(where)[1]["state"] == "packed", "the order is packed")
    until(lambda: shop.ask(where)[1]["run"] == "waiting", "its run waits for the parcel")
    assert shop.ask(f"{where}shipped/", method="POST")[0] == 204
    with WorkflowClient(url) as client:
        assert client.wait_for_run(made["run"], timeout="20s").output == {"shipped": True}
    assert shop.ask(where) == (200, {"state": "shipped", "run": "completed", "percent": 100})
    assert made["run"] in shop.run("pgworkflows runs")
    assert "workers   1 live" in shop.run("pgworkflows status")
    assert shop.end() == [0, 0]
    assert rows(url, "select id from pgworkflows.workers") == []
