"""The shop of examples/flask_shop as it is in production: behind gunicorn, with and without --preload, in processes and
threads, asked by HTTP, stopped and killed under load; and its README, command by command."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest
from bouncing import pooled
from pages import blocks
from waiting import until
from working import children, rows, value

from pgworkflows import WorkflowClient

ROOT = Path(__file__).parents[1]
SHOP = ROOT / "examples" / "flask_shop"
BIN = Path(sys.executable).parent
SCRIPT = """
create table articles (name text primary key, stock integer not null check (stock >= 0));
create table orders (
    id serial primary key, customer text not null, article text not null references articles,
    quantity integer not null check (quantity between 1 and 100), status text not null, run_id uuid,
    created_at timestamp not null default now()
);
create table charges (key text primary key, order_id integer not null references orders);
insert into articles values ('teapot', 1000), ('last-cup', 1);
"""

pytestmark = pytest.mark.skipif(not (BIN / "gunicorn").exists(), reason="gunicorn is not installed beside Python")


class Process:
    """A process of the shop's, and what it has said."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self._log = log

    def said(self) -> str:
        return self._log.read_text()

    def await_words(self, pattern: str) -> str:
        """Wait until it says that: the first group."""

        def found() -> list[str]:
            assert self.process.poll() is None, self.said()
            return re.findall(pattern, self.said())

        return until(found, f"it says {pattern}")[0]

    def end(self) -> int:
        """Tell it to stop: the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(40)

    def kill(self) -> None:
        """End it, and what it has forked."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(20)


class Site:
    """What is served on a port."""

    def __init__(self, port: str) -> None:
        self.port = port

    def ask(self, path: str, data: object = None, key: str | None = None, method: str | None = None) -> tuple[int, Any]:
        """The status and the JSON of an answer."""
        headers = {"Content-Type": "application/json"} | ({} if key is None else {"Idempotency-Key": key})
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error) if error.headers.get_content_type() == "application/json" else None

    def order(self, article: str = "teapot", quantity: int = 1, key: str | None = None) -> tuple[int, Any]:
        return self.ask("/orders", {"customer": "ada", "article": article, "quantity": quantity}, key)


class Shop:
    """The example's programs on a database of the test's own."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self._folder = folder
        self.environment = {
            **os.environ,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "HOME": str(folder),  # where gunicorn puts a socket
            "DATABASE_URL": url,
            "SHOP_BIND": "127.0.0.1:0",
        }
        if pooled():
            self.environment["FLASK_SQLALCHEMY_ENGINE_OPTIONS"] = '{"connect_args": {"prepare_threshold": null}}'

    def use(self, driver: str) -> None:
        """Let SQLAlchemy have another driver than the shop says."""
        if driver != "psycopg":
            self.environment.pop("FLASK_SQLALCHEMY_ENGINE_OPTIONS", None)  # no other driver prepares by itself
        self.environment["FLASK_SQLALCHEMY_DATABASE_URI"] = self.url.replace("postgresql://", f"postgresql+{driver}://")

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )

    def alembic(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Commands of Alembic's, in one process."""
        program = (
            "import sys; from alembic import command; from alembic.config import Config\n"
            "for words in sys.argv[1:]:\n"
            "    name, *arguments = words.split()\n"
            "    getattr(command, name)(Config('examples/flask_shop/alembic.ini'), *arguments)\n"
        )
        return self.run(sys.executable, "-c", program, *words)

    @contextmanager
    def start(self, *command: str, **variables: str) -> Generator[Process]:
        """A process of its own group, which is killed at the end."""
        log = self._folder / f"{len(list(self._folder.iterdir()))}.log"
        with log.open("w") as output:
            process = Process(
                subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env={**self.environment, **variables},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    text=True,
                    start_new_session=True,
                ),
                log,
            )
            try:
                yield process
            finally:
                process.kill()

    @contextmanager
    def serve(self, **variables: str) -> Generator[tuple[Process, Site]]:
        command = ("gunicorn", "-c", "examples/flask_shop/gunicorn.conf.py", "examples.flask_shop:create_app()")
        with self.start(*command, **variables) as process:
            site = Site(process.await_words(r"Listening at: http://127.0.0.1:(\d+)"))
            until(lambda: site.ask("/healthz")[0] == 200, "it serves")
            yield process, site

    @contextmanager
    def work(self, *options: str) -> Generator[Process]:
        before = self.workers()
        with self.start("flask", "--app", "examples.flask_shop", "pgworkflows", "worker", *options) as process:
            until(lambda: self.workers() > before, "the worker registers")
            yield process

    def workers(self) -> set[int]:
        """The processes of live workers."""
        return {pid for (pid,) in rows(self.url, "select pid from pgworkflows.workers")}

    def orders(self) -> dict[int, str]:
        return dict(rows(self.url, "select id, status from orders"))

    def await_orders(self, *statuses: str) -> None:
        """Wait until all orders are one of that."""
        until(lambda: set(self.orders().values()) <= {*statuses}, f"all orders are {statuses}", within_s=40)

    def check_the_books(self) -> None:
        """Each order has its run and each run its order; each that has its goods was charged once."""
        assert rows(self.url, "select id, run_id from orders order by id") == rows(
            self.url, "select (input ->> 'order_id')::int, id from pgworkflows.runs order by 1"
        )
        sold = "select sum(quantity) from orders where article = 'teapot' and status <> 'new'"
        assert value(self.url, "select stock from articles where name = 'teapot'") == 1000 - (
            value(self.url, sold) or 0
        )
        assert rows(self.url, "select order_id from charges order by 1") == rows(
            self.url, "select id from orders where status = 'paid' order by 1"
        )


@pytest.fixture
def shop(database_url: str, tmp_path: Path) -> Shop:
    rows(database_url, SCRIPT)
    return Shop(database_url, tmp_path)


@pytest.mark.parametrize(
    ("preload", "driver"), [("0", "psycopg"), ("1", "psycopg2")], ids=["forked first", "preloaded"]
)
def test_orders_are_seen_through_by_workers_in_the_web_processes(shop: Shop, preload: str, driver: str) -> None:
    shop.use(driver)
    with shop.serve(SHOP_WORKER="1", SHOP_PRELOAD=preload) as (gunicorn, site):
        until(lambda: len(shop.workers()) == 2, "each web process has a worker")
        assert gunicorn.process.pid not in shop.workers()
        with ThreadPoolExecutor(8) as threads:
            answers = [*threads.map(lambda n: site.order(key=f"k-{n % 20}"), range(40))]
        # Each order was sent twice.
        assert sorted(status for status, _ in answers) == [200] * 20 + [201] * 20
        assert len({order["id"] for _, order in answers}) == 20
        # Refused, impossible, and rolled back by a rule of the database's.
        assert site.order(quantity=0)[0] == site.order("unicorn")[0] == 422
        assert site.ask("/orders/999999/shipped", method="POST")[0] == 404
        cups = [site.order("last-cup")[1]["id"] for _ in range(2)]
        shop.await_orders("paid", "sold out")
        shop.check_the_books()
        orders = shop.orders()
        [sold_out] = [cup for cup in cups if orders[cup] == "sold out"]
        assert [*orders.values()].count("sold out") == 1
        assert site.ask(f"/orders/{sold_out}/shipped", method="POST")[0] == 409
        first = answers[0][1]["id"]
        assert site.ask(f"/orders/{first}/shipped", method="POST")[0] == 202
        until(lambda: site.ask(f"/orders/{first}")[1] == {"id": first, "status": "shipped", "progress": 100}, "it ends")
        assert site.ask(f"/orders/{first}/shipped", method="POST")[0] == 202  # the same event, once more
        assert gunicorn.end() == 0
    assert shop.workers() == set()
    assert "Traceback" not in gunicorn.said()
    assert "was forked" not in gunicorn.said()


def test_an_order_that_cannot_be_written_starts_no_run(shop: Shop) -> None:
    rows(shop.url, "alter table orders add check (customer <> 'ada')")
    with shop.serve(SHOP_PROCESSES="1") as (_, site):
        assert site.order()[0] == 500
        assert value(shop.url, "select count(*) from pgworkflows.runs") == 0
        # And where no run can be started at all, the health check says so.
        rows(shop.url, "alter schema pgworkflows rename to elsewhere")
        assert site.ask("/healthz") == (503, {"ok": False})


def test_web_and_worker_processes_that_are_stopped_and_killed_under_load_lose_nothing(shop: Shop) -> None:
    """Each web server gets SIGTERM in the middle, one web process SIGKILL, one worker SIGTERM, another SIGKILL."""
    accepted: list[int] = []

    def send(site: Site, wanted: Callable[[], bool], number: int) -> None:
        while wanted():
            try:
                status, order = site.order(key=f"{site.port}-{number}-{len(accepted)}-{threading.get_ident()}")
            except (OSError, HTTPException):  # it stops, or was killed: nothing was promised
                continue
            assert status in (200, 201)
            accepted.append(order["id"])

    def load(site: Site, during: Callable[[], None]) -> None:
        done = threading.Event()
        with ThreadPoolExecutor(4) as threads:
            sending = [threads.submit(send, site, lambda: not done.is_set(), n) for n in range(4)]
            try:
                before = len(accepted)
                until(lambda: len(accepted) > before + 20, "orders come in")
                during()
            finally:
                done.set()
            for each in sending:
                each.result(40)

    with shop.work("--threads", "4"), shop.work("--grace", "5s") as second:
        with shop.serve(SHOP_WORKER="1") as (gunicorn, site):
            until(lambda: len(shop.workers()) == 4, "all work")

            victims = sorted(shop.workers() & children(gunicorn.process.pid))

            def kill_one_and_stop_the_others() -> None:
                os.kill(victims[0], signal.SIGKILL)
                until(lambda: len(accepted) > 60, "orders come in again")
                assert second.end() == 0
                assert gunicorn.end() == 0

            load(site, kill_one_and_stop_the_others)
        with shop.serve(SHOP_PROCESSES="1") as (_, site):
            load(site, lambda: None)
        shop.await_orders("paid")
    assert set(accepted) <= set(shop.orders())
    shop.check_the_books()


# Alembic ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_alembic_applies_our_migrations_and_sees_nothing_of_ours(
    empty_database_url: str, tmp_path: Path, driver: str
) -> None:
    shop = Shop(empty_database_url, tmp_path)
    shop.use(driver)
    done = shop.alembic("upgrade head", "check", "downgrade 0001", "upgrade head")
    assert done.returncode == 0, done.stderr
    assert "No new upgrade operations" in done.stdout
    assert value(shop.url, "select version_num from alembic_version") == "0002"
    assert value(shop.url, "select count(*) from pgworkflows.migrations") == 7
    with WorkflowClient(shop.url) as client:
        client.migrate()
        assert client.health().ok


def test_alembic_takes_all_back_when_one_of_our_migrations_fails(empty_database_url: str, tmp_path: Path) -> None:
    shop = Shop(empty_database_url, tmp_path)
    # The name of a function that the third makes.
    rows(shop.url, "create schema pgworkflows")
    rows(shop.url, "create function pgworkflows.due_schedules(uuid) returns int language sql return 1")
    failed = shop.alembic("upgrade head")
    assert failed.returncode == 1
    assert "due_schedules" in failed.stderr
    assert value(shop.url, "select version_num from alembic_version") == "0001"
    assert rows(shop.url, "select from pg_tables where schemaname = 'pgworkflows'") == []


def test_alembic_cannot_write_our_migrations_out_and_says_so(empty_database_url: str, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    shop = Shop(empty_database_url, tmp_path / "logs")
    folder = tmp_path / "migrations"
    shutil.copytree(SHOP / "migrations", folder)
    (folder / "env.py").write_text(
        "from alembic import context\n"
        "context.configure(dialect_name='postgresql')\n"
        "with context.begin_transaction():\n"
        "    context.run_migrations()\n"
    )
    (tmp_path / "alembic.ini").write_text(f"[alembic]\nscript_location = {folder}\npath_separator = os\n")
    done = shop.run("alembic", "-c", str(tmp_path / "alembic.ini"), "upgrade", "head", "--sql")
    assert done.returncode == 1
    assert "cannot be written out by Alembic (--sql)" in done.stderr


# The README ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_readme_leads_a_new_user_through(empty_database_url: str, tmp_path: Path) -> None:
    shop = Shop(empty_database_url, tmp_path)
    install, web, worker, use = (block.text for block in blocks(SHOP / "README.md"))
    pip, export, alembic = install.splitlines()
    assert (pip.split()[0], export.split()[0]) == ("pip", "export")

    def type_in(commands: str) -> list[str]:
        done = shop.run("bash", "-ec", commands)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.splitlines()

    type_in(alembic)
    with shop.start("bash", "-ec", f"exec {web}") as gunicorn:
        port = gunicorn.await_words(r"Listening at: http://127.0.0.1:(\d+)")
        with shop.start("bash", "-ec", f"exec {worker.replace('8081', '0')}") as process:
            until(lambda: shop.workers() == {process.process.pid}, "the worker registers")
            lines = use.replace("localhost:8000", f"localhost:{port}").splitlines()
            first, again, look, ship, healthz, ready, status, listing = lines
            assert json.loads(type_in(first)[0])["id"] == json.loads(type_in(again)[0])["id"] == 1
            until(lambda: json.loads(type_in(look)[0])["status"] == "paid", "it is paid")
            assert type_in(ship) == ["{}"]
            assert type_in(healthz) == ['{"ok":true}']
            assert ready == "curl -sS localhost:8081/ready"
            assert "workers   1 live" in type_in(status)
            until(lambda: "completed" in type_in(listing)[1], "it is completed")
            assert process.end() == 0
        assert gunicorn.end() == 0


# Deployment ---------------------------------------------------------------------------------------------------------


def commands_of(text: str) -> list[str]:
    """The programs that files for systemd, Docker and Kubernetes start, each as one line of words."""
    units = re.findall(r"^Exec(?:Start|StartPre)=/srv/shop/\.venv/bin/(.*)$", text, re.MULTILINE)
    lists = re.findall(r"^(?:CMD| +command:) (\[.*\])$", text, re.MULTILINE)
    return [*(" ".join(shlex.split(unit)) for unit in units), *(" ".join(json.loads(words)) for words in lists)]


def test_what_is_deployed_is_what_the_readme_runs() -> None:
    shown = "\n".join(block.text for block in blocks(SHOP / "README.md"))
    known = {" ".join(shlex.split(line)) for line in shown.splitlines() if not line.startswith("curl")}
    found = {
        command: file.name for file in sorted((SHOP / "deploy").iterdir()) for command in commands_of(file.read_text())
    }
    assert {re.sub(r"--probe \S+", "--probe 8081", command) for command in found} <= known, found
    programs = [command.split()[0] for command in found]
    assert {program: programs.count(program) for program in programs} == {"gunicorn": 1, "flask": 3, "alembic": 1}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_understands_the_units(tmp_path: Path) -> None:
    for unit in (SHOP / "deploy").glob("*.[st][ei]*"):
        if unit.suffix == ".service":
            # The programs are not there; what systemd says of everything else is.
            text = re.sub(r"/srv/shop/\.venv/bin/\w+", sys.executable, unit.read_text()).replace("User=shop", "")
            (tmp_path / unit.name.replace("@", "@1")).write_text(text)
    units = sorted(str(path) for path in tmp_path.iterdir())
    assert len(units) == 2
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
    said = [line for line in done.stderr.splitlines() if any(Path(unit).name in line for unit in units)]
    assert said == []
