"""MODULE:ENGINE on the command line: what is found, and what is said when it is not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pgworkflows.cli.loading import load_engine
from pgworkflows.cli.program import program

APPLICATION = """
from pgworkflows import WorkflowEngine
from pgworkflows.errors import ConfigurationError

URL = "postgresql://nobody@127.0.0.1:1/none"
engine = WorkflowEngine(URL)

def make_engine():
    return WorkflowEngine(URL)

def make_trouble():
    return {}["secret"]

def no_database():
    raise ConfigurationError("cannot connect to PostgreSQL at db1: refused")

class application:
    engine = engine

number = 7
nothing = lambda: None
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory: the package `bakery` with the module `workflows`, and modules that fail."""
    (tmp_path / "bakery").mkdir()
    (tmp_path / "bakery" / "__init__.py").touch()
    (tmp_path / "bakery" / "workflows.py").write_text(APPLICATION)
    (tmp_path / "fails.py").write_text("def begin():\n    return 1 / 0\n\nengine = begin()\n")
    (tmp_path / "misspelt.py").write_text("engine = = 1\n")
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(7)\n")
    (tmp_path / "lacks.py").write_text("import not_installed_here\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "modules", {**sys.modules})
    return tmp_path


def worker(*words: str) -> Result:
    return CliRunner().invoke(program, [*words])


@pytest.mark.usefixtures("folder")
def test_an_engine_is_found_by_its_name_in_a_module_of_the_current_directory_or_is_made() -> None:
    for target in ("bakery.workflows:engine", "bakery.workflows:application.engine", "bakery.workflows:make_engine"):
        with load_engine(target) as engine:
            assert "user=nobody" in engine.conninfo


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("bakery.workflows", "'bakery.workflows' names no engine: write MODULE:ENGINE, as in shop.workflows:engine"),
        ("bakery/workflows:engine", "names no engine"),
        ("..bakery:engine", "names no engine"),
        ("bakery.workflows:engine()", "names no engine"),
        ("bakery.workflow:engine", "there is no module 'bakery.workflow', in "),
        ("nowhere.at.all:engine", "there is no module 'nowhere', in "),
        ("fails.py:engine", "there is no module 'fails.py': write fails:engine"),
        ("bakery.workflows:engin", "bakery.workflows has no 'engin'; it has 'engine'"),
        ("bakery.workflows:application.engin", "bakery.workflows:application has no 'engin'; it has 'engine'"),
        ("bakery.workflows:number", "bakery.workflows:number is an int, and neither a WorkflowEngine nor a callable"),
        ("bakery.workflows:nothing", "bakery.workflows:nothing() gives a NoneType, and no WorkflowEngine"),
        ("lacks:engine", "the module lacks failed: ModuleNotFoundError: No module named 'not_installed_here'"),
        ("leaves:engine", "the module leaves failed: SystemExit: 7"),
        ("misspelt:engine", "the module misspelt failed: SyntaxError: invalid syntax"),
    ],
)
def test_what_is_wrong_with_the_name_is_said_in_a_line(target: str, said: str) -> None:
    told = worker("worker", target)
    assert (told.exit_code, told.stdout) == (2, "")
    assert f"Error: {said}" in told.stderr or said in told.stderr.splitlines()[-1]


def test_an_exception_in_the_module_is_shown_with_its_lines_and_none_of_ours(folder: Path) -> None:
    told = worker("worker", "fails:engine")
    lines = told.stderr.splitlines()
    places = [line.strip() for line in lines if line.strip().startswith("File")]
    assert places == [f'File "{folder}/fails.py", line 4, in <module>', f'File "{folder}/fails.py", line 2, in begin']
    assert lines[-1] == "Error: the module fails failed: ZeroDivisionError: division by zero"
    told = worker("worker", "bakery.workflows:make_trouble")
    assert told.stderr.count("File") == 1
    assert told.stderr.endswith("Error: bakery.workflows:make_trouble() failed: KeyError: 'secret'\n")


@pytest.mark.usefixtures("folder")
def test_a_database_that_cannot_be_reached_is_another_exit_status() -> None:
    assert worker("worker", "bakery.workflows:no_database").exit_code == 3
    told = worker("worker", "bakery.workflows:engine")
    assert told.exit_code == 3
    assert "cannot connect to PostgreSQL" in told.stderr


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--threads", "0"], "threads must lie within 1 and 10000, not 0"),
        (["--lease", "soon"], "lease is 'soon'"),
        (["--processes", "0"], "0 is not in the range"),
        (["--processes", "2", "--grace", "soon"], "grace is 'soon'"),
        (["--probe", "nowhere"], "'nowhere' is no port, nor host:port"),
    ],
)
def test_an_option_that_cannot_be_is_refused(words: list[str], said: str) -> None:
    told = worker("worker", "bakery.workflows:engine", *words)
    assert told.exit_code == 2
    assert said in told.stderr


def test_the_database_is_the_engines_and_no_option() -> None:
    told = worker("--url", "postgresql://db1/bakery", "worker", "bakery.workflows:engine")
    assert told.exit_code == 2
    assert "--url is for commands without an engine: that of bakery.workflows:engine has its own" in told.stderr
