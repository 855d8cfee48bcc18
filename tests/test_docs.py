"""The documentation is true: its code runs, its links lead somewhere, what it names exists."""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from conftest import Databases
from pages import DOCS, PAGES, README, ROOT, Block, blocks, named, page_id, python_of, without_code
from waiting import until
from working import rows

import pgworkflows
from pgworkflows import EmbeddedPostgres, WorkflowClient
from pgworkflows.limits import MAX_JSON_LENGTH
from pgworkflows.runs import TRANSITIONS

QUICKSTART = ROOT / "examples" / "quickstart.py"

END_OF_BLOCK = "\x1e"


def as_script(parts: list[Block]) -> str:
    """The page's code with the line numbers of the page, so that errors point into it."""
    lines: list[str] = []
    for block in parts:
        lines += [""] * (block.line - 1 - len(lines))
        lines += block.text.splitlines()
        lines.append(f"print({END_OF_BLOCK!r}, flush=True)")
    return "\n".join(lines) + "\n"


def claimed_output(block: Block) -> str | None:
    """What the page says the block prints: a text block right after it."""
    lines = block.page.read_text().splitlines()
    for other in blocks(block.page):
        between = lines[block.end : other.line - 2]
        if other.language == "text" and other.line > block.end and not "".join(between).strip():
            return other.text
    return None


def run_python(
    code: str, folder: Path, url: str, *, name: str = "page.py", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a script in a folder of its own, as a reader would."""
    script = folder / name
    script.write_text(code)
    return subprocess.run(
        [sys.executable, str(script)],
        cwd=folder,
        env={**os.environ, "DATABASE_URL": url, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


PAGES_WITH_PYTHON = [page for page in PAGES if python_of(page)]


def test_blocks_of_python_have_their_tests() -> None:
    """Files shown on a page are run by a test of their own; this names them."""
    shown = {(page.name, block.name) for page in PAGES for block in blocks(page) if block.name is not None}
    assert shown == {
        ("operations.md", "worker.py"),
        ("operations.md", "release.py"),
        ("security.md", "grants.py"),
        ("testing.md", "conftest.py"),
        ("testing.md", "welcome.py"),
        ("testing.md", "test_welcome.py"),
        ("testing.md", "tests.py"),
        ("flask.md", "web.py"),
        ("django.md", "settings.py"),
        ("django.md", "workflows.py"),
        ("django.md", "models.py"),
        ("django.md", "views.py"),
        ("django.md", "reports.py"),
        ("django.md", "urls.py"),
        ("django.md", "task_settings.py"),
    }
    assert not {block.language for page in PAGES for block in blocks(page)} - {
        "python", "sql", "text", "sh", "ini", "mermaid"
    }  # fmt: skip


# The first workflow -------------------------------------------------------------------------------------------------


def test_the_first_workflow_of_the_readme_is_the_file() -> None:
    first = python_of(README)[0]
    assert first.text == QUICKSTART.read_text()


@dataclass(frozen=True)
class Slow:
    """What takes its time goes on beside the other tests."""

    killed_and_again: Future[list[str]]
    suites: list[Future[subprocess.CompletedProcess[str]]]
    pages: Mapping[Path, Future[subprocess.CompletedProcess[str]]]


@pytest.fixture(scope="module", autouse=True)
def _begun_at_once(request: pytest.FixtureRequest) -> None:
    """The slow things begin with the first test here, if any test of theirs was chosen."""
    chosen = [item for item in request.session.items if item.path == Path(__file__)]
    if any("slow" in getattr(item, "fixturenames", ()) for item in chosen):
        request.getfixturevalue("slow")


@pytest.fixture(scope="module")
def slow(
    tmp_path_factory: pytest.TempPathFactory, server: str, databases: Databases, migrated_template: str
) -> Iterator[Slow]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pgw-test-")))
        folder.chmod(0o755)  # root's server has another user
        urls = {page: stack.enter_context(databases.fresh(migrated_template)) for page in PAGES_WITH_PYTHON}
        threads = stack.enter_context(ThreadPoolExecutor(max_workers=4))
        yield Slow(
            threads.submit(kill_the_first_workflow, folder),
            [
                threads.submit(
                    run_the_suite_of_the_page, tmp_path_factory.mktemp("suite"), ["welcome.py", *tests], given
                )
                for tests, given in (
                    (["test_welcome.py"], {}),
                    (["test_welcome.py", "conftest.py"], {"PGWORKFLOWS_TEST_URL": server}),
                )
            ],
            {
                page: threads.submit(
                    run_python,
                    as_script(python_of(page)),
                    tmp_path_factory.mktemp(page.stem),
                    url,
                    name=f"page_{page.stem.replace('-', '_')}.py",  # not that of a module which it imports
                )
                for page, url in urls.items()
            },
        )


def kill_the_first_workflow(folder: Path) -> list[str]:
    """What it prints when it is killed in its second step, when it is run again, and then once more."""
    command = [sys.executable, str(QUICKSTART), "eve@example.com"]
    environment = {name: text for name, text in os.environ.items() if name != "DATABASE_URL"}
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as first:
        assert first.stdout is not None
        said = [first.stdout.readline() + first.stdout.readline()]
        first.kill()
    for _ in range(2):
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=True
        )
        said.append(done.stdout)
    EmbeddedPostgres(folder / ".pgworkflows" / "postgres").start().stop()  # returns when the server has stopped
    return said


def run_the_suite_of_the_page(
    folder: Path, names: list[str], variables: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    for name in names:
        (folder / name).write_text(named(DOCS / "testing.md", name))
    environment = {name: text for name, text in os.environ.items() if name != "PGWORKFLOWS_TEST_URL"}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", ".", "-c", os.devnull, "."],
        cwd=folder,
        env={**environment, **variables},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


# Files shown on pages -----------------------------------------------------------------------------------------------


@pytest.fixture
def worker_program(tmp_path: Path, database_url: str) -> Iterator[subprocess.Popen[str]]:
    """The worker of docs/operations.md, at work."""
    script = tmp_path / "worker.py"
    script.write_text(named(DOCS / "operations.md", "worker.py"))
    environment = {**os.environ, "DATABASE_URL": database_url}
    with subprocess.Popen([sys.executable, str(script)], env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            until(
                lambda: rows(database_url, "select id from pgworkflows.workers where pid = %s", process.pid),
                "the worker registers",
            )
            yield process
        finally:
            process.kill()


@pytest.mark.direct("looks at the sessions of connections")
def test_the_worker_program_uses_four_connections_shows_its_threads_and_ends_on_sigterm(
    worker_program: subprocess.Popen[str], database_url: str
) -> None:
    with WorkflowClient(database_url) as client:
        run = client.start_workflow("nightly")
        assert client.wait_for_run(run.id, timeout="20s").status == "completed"
    open_now = (
        "select pid from pg_stat_activity where application_name = 'pgworkflows' and datname = current_database()"
    )
    until(lambda: len(rows(database_url, open_now)) == 4, "four connections are open")
    worker_program.send_signal(signal.SIGUSR1)
    assert worker_program.stderr is not None
    assert any('pgworkflows/dispatcher.py", line' in line for line in worker_program.stderr)
    worker_program.send_signal(signal.SIGTERM)
    worker_program.communicate(timeout=20)
    assert worker_program.returncode == 0


def test_the_release_program_migrates(tmp_path: Path, empty_database_url: str) -> None:
    code = named(DOCS / "operations.md", "release.py")
    first, second = (run_python(code, tmp_path, empty_database_url) for _ in range(2))
    assert "0001_initial" in first.stdout, first.stderr
    assert second.stdout.strip() == "[]", second.stderr


def test_the_flask_application_starts_runs_in_its_own_transactions(tmp_path: Path, database_url: str) -> None:
    rows(database_url, "create table people (email text check (email <> 'nobody@example.com'))")
    visit = """
app.errorhandler(psycopg.Error)(lambda error: ("no", 409))
web = app.test_client()
started = web.post("/sign-ups", data={"email": "ada@example.com"})
print(started.status_code)
print(web.post(f"/sign-ups/{started.json['run']}/confirm").json)
print(web.post("/sign-ups", data={"email": "nobody@example.com"}).status_code)
"""
    done = run_python(named(DOCS / "flask.md", "web.py") + visit, tmp_path, database_url)
    assert done.stdout.splitlines() == ["202", "{'progress': 0}", "409"], done.stderr
    people = rows(database_url, "select email from people order by email")
    runs = rows(database_url, "select input ->> 'email' from pgworkflows.runs order by 1")
    assert people == runs == [("ada@example.com",)]
    assert rows(database_url, "select name from pgworkflows.events") == [("confirmed",)]


def test_the_flask_application_explains_what_does_not_fit(tmp_path: Path, database_url: str) -> None:
    rows(database_url, "create table people (email text)")
    visit = """
SIGN_UP = workflow_ref("sign-up", input_schema=dict[str, int])
answer = app.test_client().post("/sign-ups", data={"email": "ada@example.com"})
print(answer.status_code, answer.json["problems"][0]["loc"])
"""
    done = run_python(named(DOCS / "flask.md", "web.py") + visit, tmp_path, database_url)
    assert done.stdout.strip() == "422 ['email']", done.stderr
    assert rows(database_url, "select email from people") == []


def test_the_django_project_of_the_page_works(tmp_path: Path, empty_database_url: str) -> None:
    page = DOCS / "django.md"
    for name in ("models.py", "workflows.py", "views.py", "reports.py"):
        file = tmp_path / "people" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(named(page, name))
    (tmp_path / "settings.py").write_text(
        f"""{named(page, "settings.py")}
{named(page, "task_settings.py")}
from project import MIDDLEWARE, TEMPLATES, database
SECRET_KEY, ALLOWED_HOSTS, DEFAULT_AUTO_FIELD = "x", ["*"], "django.db.models.BigAutoField"
DATABASES = {{"default": database({empty_database_url!r})}}
ROOT_URLCONF = "urls"
"""
    )
    visit = """
import asyncio, json
import django
from django.core.management import call_command
django.setup()
call_command("migrate", run_syncdb=True, verbosity=0, skip_checks=False)
from django.test import AsyncRequestFactory, RequestFactory
from people import views
from pgworkflows.contrib.django import engine
made = json.loads(views.sign_up(RequestFactory().post("/", {"name": "Ada"})).content)
answer = asyncio.run(views.again(AsyncRequestFactory().get(f"/?person={made['person']}")))
assert answer.status_code == 202
engine().worker().run_until_idle("20s")
print(engine().get_run(made["run"]).output)
from people import reports
print(reports.failed.count(), reports.of_ada.count(), reports.steps)
from django.test import Client
print(Client().get("/workflows/runs").headers["Location"])
call_command("pgworkflows", "status")
"""
    (tmp_path / "urls.py").write_text(named(page, "urls.py"))
    place = os.pathsep.join([str(tmp_path), str(DOCS.parent / "tests" / "djangos")])
    done = run_python(
        visit, tmp_path, empty_database_url, DJANGO_SETTINGS_MODULE="settings", PYTHONPATH=place, PYTHONWARNINGS="error"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Welcome, Ada\n0 2 [('greet', 'Welcome, Ada'), ('greet', 'Welcome, Ada')]\n"), (
        done.stdout
    )
    assert "/accounts/login/?next=/workflows/runs\n" in done.stdout


# What pages say of the code -----------------------------------------------------------------------------------------


def test_the_diagram_of_statuses_shows_the_transitions_and_no_others() -> None:
    [diagram] = [block.text for block in blocks(DOCS / "concepts.md") if block.text.startswith("stateDiagram")]
    drawn = re.findall(r"^\s*(\w+) --> (\w+)", diagram, re.MULTILINE)
    allowed = [(str(status), str(following)) for status, those in TRANSITIONS.items() for following in those]
    assert sorted(drawn) == sorted(allowed)


def test_every_public_name_is_explained() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    assert [name for name in pgworkflows.__all__ if not re.search(rf"\b{name}\b", text)] == []


def test_the_limits_in_the_readme_are_those_of_the_code() -> None:
    assert f"{MAX_JSON_LENGTH:,} characters" in README.read_text()


def test_every_method_of_the_public_classes_is_in_the_reference() -> None:
    text = (DOCS / "reference.md").read_text()
    classes = (pgworkflows.WorkflowEngine, pgworkflows.Worker, pgworkflows.Step)
    methods = {
        name for each in classes for name in dir(each) if not name.startswith("_") and callable(getattr(each, name))
    }
    assert sorted(name for name in methods if not re.search(rf"\b{name}\b", text)) == []


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as they are made on the usual hosts."""
    found = re.findall(r"^#+ (.+)$", without_code(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page)):
        if not target.startswith("https://"):
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), target
            assert not anchor or anchor in headings(file), target


def test_every_page_is_linked_from_where_one_begins() -> None:
    linked = set(re.findall(r"\]\(([^)\s#]+)", README.read_text()))
    assert {page_id(page) for page in DOCS.glob("*.md")} <= linked
    decisions = DOCS / "decisions" / "README.md"
    titles = {
        (f"# {title}", target)
        for title, target in re.findall(r"^- \[(.+)\]\((.+)\)$", decisions.read_text(), re.MULTILINE)
    }
    pages = set(decisions.parent.glob("*.md")) - {decisions}
    assert titles == {(page.read_text().split("\n")[0], page.name) for page in pages}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_files_and_commands_that_are_named_exist(page: Path) -> None:
    text = page.read_text()
    for name in re.findall(r"`((?:pgworkflows|tests|examples|migrations|bench|scripts)/[\w/.]*)`", text):
        assert (ROOT / name).exists(), name
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([\w-]+)", text)) <= targets


TEST_NAME = re.compile(r"`(test_\w+\.py(?:::\w+)+)`")


@cache
def existing_tests() -> set[str]:
    """The tests of this suite, and the classes they stand in, as pages name them."""
    found: set[str] = set()
    for file in (ROOT / "tests").glob("test_*.py"):
        for node in ast.parse(file.read_text()).body:
            name = f"{file.name}::{node.name}" if isinstance(node, ast.FunctionDef | ast.ClassDef) else ""
            methods = node.body if isinstance(node, ast.ClassDef) else []
            found |= {name, *(f"{name}::{each.name}" for each in methods if isinstance(each, ast.FunctionDef))}
    return found


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_the_tests_that_a_page_names_exist(page: Path) -> None:
    assert sorted(set(TEST_NAME.findall(page.read_text())) - existing_tests()) == []


def test_every_guarantee_names_tests() -> None:
    assert len(set(TEST_NAME.findall((DOCS / "guarantees.md").read_text()))) > 30


def test_every_row_about_another_engine_names_a_test() -> None:
    text = (DOCS / "coming-from-pg-workflows.md").read_text()
    tables = re.findall(r"^\|.*the test that shows it \|\n\|[-|]+\|\n((?:\|.*\n)+)", text, re.MULTILINE)
    found = [row for table in tables for row in table.splitlines()]
    assert len(found) == len(re.findall(r"^\| (?!-)", text, re.MULTILINE)) - len(tables)
    assert [row for row in found if not re.search(rf"\| {TEST_NAME.pattern} \|$", row)] == []
    assert len(found) > 100


def test_the_messages_on_the_page_are_those_that_are_logged() -> None:
    sources = "".join(path.read_text() for path in sorted((ROOT / "pgworkflows").rglob("*.py")))
    said = re.sub(r'"\s*\n\s*f?"', "", sources)
    table = re.findall(r"^\| (?:info|warning|error) \| `(.+?)` \|", (DOCS / "operations.md").read_text(), re.MULTILINE)
    for message in table:
        for part in re.split("…|failed|is tried again later", message):
            assert part.strip() in said, message
    calls = re.findall(r"logger\.(?:log|info|warning|error|exception)\(", sources)
    assert len(table) == len(calls) + 1  # one call says two things


# What was begun at first --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES_WITH_PYTHON, ids=page_id)
def test_the_python_of_a_page_runs_and_prints_what_the_page_says(page: Path, slow: Slow) -> None:
    parts = python_of(page)
    done = slow.pages[page].result(60)
    assert done.returncode == 0, f"the script's lines are those of {page_id(page)}:\n{done.stderr}"
    printed = done.stdout.split(END_OF_BLOCK + "\n")
    for block, output in zip(parts, printed, strict=False):
        claimed = claimed_output(block)
        if claimed is not None:
            assert output.rstrip() == claimed.rstrip(), f"{page_id(page)}, line {block.line}"


def test_the_suite_on_the_testing_page_passes_with_and_without_the_conftest(slow: Slow) -> None:
    for suite in slow.suites:
        done = suite.result(100)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "4 passed" in done.stdout


def test_the_first_workflow_goes_on_after_it_was_killed(slow: Slow) -> None:
    first, again, once_more = slow.killed_and_again.result(60)
    assert "making a user" in first
    assert "please confirm" in first
    assert "making a user" not in again
    assert again.count("mailing eve@example.com: please confirm") == 1
    assert "completed {'user': 'u-1', 'confirmed': 'noon'}" in again
    assert "mailing" not in once_more
    assert "completed" in once_more
