"""The command line, through click's runner: every command against a real database, and every exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import pgworkflows
from pgworkflows import WorkflowClient
from pgworkflows.cli.commands import COMMANDS
from pgworkflows.cli.program import program

Cli = Callable[..., Result]


@pytest.fixture
def cli(database_url: str) -> Cli:
    """Calls `pgworkflows` with these words, on the test's database."""

    def call(*words: str, **options: object) -> Result:
        return CliRunner().invoke(program, ["--url", database_url, *words], **options)  # type: ignore[arg-type]

    return call


def test_the_table_of_commands_says_of_each_what_its_help_says() -> None:
    with program.make_context("pgworkflows", ["status"]) as ctx:
        for name, (_, about) in COMMANDS.items():
            command = program.get_command(ctx, name)
            assert command is not None
            assert (command.help or "").split("\n\n")[0].replace("\n", " ") == about
        assert [line.split()[0] for line in program.get_help(ctx).partition("Commands:\n")[2].splitlines()[:3]] == [
            *COMMANDS
        ][:3]


def test_a_start_says_which_run_it_has_started(cli: Cli, database_url: str, tmp_path: Path) -> None:
    told = cli("start", "greet", "--input", '{"name": "Ada"}', "--resource", "ada", "--priority", "high")
    assert (told.exit_code, told.stderr) == (0, "")
    (tmp_path / "input.json").write_text("[1, 2]")
    given = [
        json.loads(cli("start", "greet", "--json", *words, input="null").stdout)
        for words in (["--input", f"@{tmp_path}/input.json", "--priority", "7"], ["--input", "-"], [])
    ]
    assert [(run["input"], run["priority"]) for run in given] == [([1, 2], 7), (None, 0), (None, 0)]
    with WorkflowClient(database_url) as client:
        run = client.get_runs(resource_id="ada").items[0]
    assert told.stdout == f"run {run.id} of workflow greet is pending\n"
    assert (run.input, run.priority) == ({"name": "Ada"}, 100)


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["start", "x", "--input", "{"], 2, "this is no JSON"),
        (["start", "x", "--input", "@/none/here"], 2, "/none/here cannot be read: No such file"),
        (["start", "x", "--timeout", "soon"], 2, "Error: timeout is 'soon': write it like"),
        (["start", "x", "--input", "NaN"], 1, "Error: the input of workflow 'x' cannot be stored as JSON"),
        (["nonsense"], 2, "No such command 'nonsense'"),
        (["export", "none"], 4, "Error: run 'none' was not found: this is no UUID\n"),
        (["grant"], 2, "name a role"),
        (["grant", "--reader", "nobody_here"], 3, "there is no role 'nobody_here'"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line_and_by_the_exit_status(
    cli: Cli, words: list[str], status: int, said: str
) -> None:
    told = cli(*words)
    assert (told.exit_code, told.stdout) == (status, "")
    assert said in told.stderr
    assert "Traceback" not in told.stderr


# What is imported when ----------------------------------------------------------------------------------------------


def imported_by(code: str) -> set[str]:
    """The modules that a fresh process has imported when it has run this."""
    script = f"import sys\n{code}\nprint(*sys.modules)"
    return set(
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    )


def test_the_package_gives_all_its_names_without_the_command_line() -> None:
    modules = imported_by("import pgworkflows\n[getattr(pgworkflows, name) for name in pgworkflows.__all__]")
    assert "pgworkflows.worker" in modules
    assert not modules & {"click", "rich", "pgworkflows.cli"}


def test_names_are_listed_before_they_are_imported_and_unknown_ones_are_refused() -> None:
    assert set(pgworkflows.__all__) <= set(dir(pgworkflows))
    with pytest.raises(AttributeError, match="module 'pgworkflows' has no attribute 'nonsense'"):
        _ = pgworkflows.nonsense  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]


def test_the_help_waits_for_no_driver_and_no_tables() -> None:
    modules = imported_by("from pgworkflows.cli.program import program\nprogram(['--help'], standalone_mode=False)")
    assert "pgworkflows.cli.program" in modules
    assert not modules & {"psycopg", "pydantic", "rich"}
