"""The command line, through click's runner: every command against a real database, and every exit status."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import click
import pytest
from cli_story import ESCAPES, WORKFLOWS, Story, advance
from click.testing import CliRunner, Result
from conftest import Databases
from psycopg.conninfo import make_conninfo
from waiting import until
from working import HandWorker, rows, working

import pgworkflows
from pgworkflows import ConfigurationError, WorkflowClient, WorkflowEngine, WorkflowRun
from pgworkflows.cli.commands import COMMANDS
from pgworkflows.cli.exits import Exit
from pgworkflows.cli.program import program
from pgworkflows.inspection import Count, Inspector
from pgworkflows.testing import check_replay


class Cli:
    """`pgworkflows` on one database."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __call__(self, *words: object, input: str | None = None) -> Result:
        return CliRunner().invoke(program, ["--url", self.url, *map(str, words)], input=input)

    def says(self, *words: object, input: str | None = None) -> list[str]:
        """The lines on standard output of a command that succeeds."""
        told = self(*words, input=input)
        assert told.exit_code == 0, told.output
        return told.stdout.splitlines()

    def json(self, *words: object) -> Any:
        """The JSON of a command that succeeds."""
        [line] = self.says(*words, "--json")
        return json.loads(line)


@pytest.fixture
def cli(database_url: str) -> Cli:
    return Cli(database_url)


@pytest.fixture(scope="module")
def story(databases: Databases, migrated_template: str) -> Iterator[Story]:
    """A database that tests only look at."""
    with databases.fresh(migrated_template) as url:
        yield Story(url)


@pytest.fixture
def told(database_url: str) -> Story:
    """The same story in a database of the test's own."""
    return Story(database_url)


def status_of(story: Story, run_id: object) -> str:
    [(status,)] = rows(story.url, "select status from pgworkflows.runs where id = %s", run_id)
    assert isinstance(status, str)
    return status


# What there is ------------------------------------------------------------------------------------------------------


def test_the_table_of_commands_says_of_each_what_its_help_says() -> None:
    with program.make_context("pgworkflows", ["status"]) as ctx:
        listed = program.get_help(ctx).partition("Commands:\n")[2]
        for name, (_, about) in COMMANDS.items():
            command = program.get_command(ctx, name)
            assert command is not None
            assert (command.help or "").split("\n\n")[0].replace("\n", " ") == about
            assert f"\n  {name} " in f"\n{listed}"


def test_every_option_is_explained() -> None:
    def options(command: click.Command) -> Iterator[click.Option]:
        yield from (each for each in command.params if isinstance(each, click.Option))
        for child in command.commands.values() if isinstance(command, click.Group) else ():
            yield from options(child)

    with program.make_context("pgworkflows", ["status"]) as ctx:
        commands = [program, *(program.get_command(ctx, name) for name in COMMANDS)]
    assert [each.opts for command in commands if command for each in options(command) if not each.help] == []


def test_the_page_has_the_help_of_every_command_and_names_no_other_command_or_option() -> None:
    script = Path(__file__).parents[1] / "scripts" / "docs_cli.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["nonsense"], Exit.USAGE, "No such command 'nonsense'"),
        (["stats"], Exit.USAGE, "No such command 'stats'. Did you mean 'status'?"),
        (["start", "x", "--input", "{"], Exit.USAGE, "this is no JSON"),
        (["start", "x", "--input", "@/none/here"], Exit.USAGE, "/none/here cannot be read: No such file"),
        (["start", "x", "--timeout", "soon"], Exit.USAGE, "Invalid value for '--timeout': it is 'soon': write it like"),
        (["stuck", "--waits-older-than", "x"], Exit.USAGE, "Invalid value for '--waits-older-than'"),
        (["status", "--max-lag", "x"], Exit.USAGE, "Invalid value for '--max-lag'"),
        (["start", "x", "--input", "NaN"], Exit.REFUSED, "Error: the input of workflow 'x' cannot be stored as JSON"),
        (["runs", "--cursor", "x"], Exit.USAGE, "is no cursor"),
        (["runs", "--since", "yesterday"], Exit.USAGE, "'yesterday' is neither how long ago"),
        (["runs", "--status", "lost"], Exit.USAGE, "'lost' is not one of 'pending'"),
        (["show", "none"], Exit.NOT_FOUND, "Error: run 'none' was not found: this is no UUID\n"),
        (["show", str(uuid4()), "--json", "--no-payloads"], Exit.USAGE, "--json has the payloads"),
        (["export", "none"], Exit.NOT_FOUND, "Error: run 'none' was not found: this is no UUID\n"),
        (["trigger", str(uuid4()), "go"], Exit.NOT_FOUND, "was not found"),
        (["cancel"], Exit.USAGE, "which runs? Give their ids, or filters"),
        (["cancel", "x", "--queue", "q"], Exit.USAGE, "give the ids of runs, or filters, not both"),
        (["retry", "--status", "waiting"], Exit.USAGE, "only failed, cancelled runs can be retried"),
        (["pause", "x"], Exit.NOT_FOUND, "Error: run 'x' was not found"),
        (["schedules", "pause", "none"], Exit.NOT_FOUND, "workflow 'none' has no schedule"),
        (["schedules", "--json", "pause", "none"], Exit.USAGE, "--json comes after pause"),
        (["prune", "--older-than", "0 s"], Exit.USAGE, "older_than"),
        (["grant"], Exit.USAGE, "name a role"),
        (["ui", "shop:engine"], Exit.USAGE, "--url is for commands without an engine"),
        (["grant", "--reader", "nobody_here"], Exit.DATABASE, "there is no role 'nobody_here'"),
        (["status", "--min-workers", "-1"], Exit.USAGE, "min_workers must not be negative"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line_and_by_the_exit_status(
    story: Story, words: list[str], status: Exit, said: str
) -> None:
    told = Cli(story.url)(*words)
    assert (told.exit_code, told.stdout) == (status, "")
    assert said in told.stderr
    assert "Traceback" not in told.stderr
    assert [line.startswith("Error: ") for line in told.stderr.splitlines()].count(True) == 1


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in {"worker", "demo", "ui"}])
def test_a_database_that_is_not_there_is_exit_status_three(name: str) -> None:
    words = {
        "start": ["x"],
        "trigger": ["x" * 8, "go"],
        "revoke": ["r"],
        "grant": ["--reader", "r"],
    }.get(name, [])
    run = (
        [str(uuid4())]
        if name in {"show", "export", "pause", "resume", "cancel", "retry", "fast-forward", "tail"}
        else []
    )
    if name == "trigger":
        words = [str(uuid4()), "go"]
    told = Cli("postgresql://nobody@127.0.0.1:1/nothing")(name, *run, *words)
    assert told.exit_code == Exit.DATABASE, told.output
    assert "127.0.0.1" in told.output


def test_a_schema_that_is_not_there_is_named_and_not_our_statement(story: Story) -> None:
    told = Cli(story.url)("--schema", "elsewhere", "runs")
    assert told.exit_code == Exit.DATABASE
    assert told.stderr.startswith("Error: the schema is not there, ")
    assert told.stderr.endswith('(relation "elsewhere.runs" does not exist)\n')


def test_where_no_database_is_named_none_is_begun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    told = CliRunner().invoke(program, ["status"])
    assert (told.exit_code, told.stdout) == (Exit.DATABASE, "")
    assert told.stderr == "Error: no database is named: set DATABASE_URL, or give --url before the command\n"
    assert list(tmp_path.iterdir()) == []


# Looking ------------------------------------------------------------------------------------------------------------


def test_runs_are_listed_newest_first_and_found_by_every_filter(story: Story) -> None:
    cli = Cli(story.url)
    head, *lines = cli.says("runs")
    assert head.split() == ["RUN", "WORKFLOW", "STATUS", "STEP", "AGE", "ERROR"]
    assert [line.split()[1:3] for line in lines] == [
        ["sign-up", "waiting"],
        ["retired", "pending"],
        ["onboard", "waiting"],
        ["invoice", "failed"],
        ["sign-up", "waiting"],
    ]
    for filters, found in {
        ("--status", "failed", "--status", "cancelled"): [story.failed],
        ("--workflow", "onboard"): [story.parent],
        ("--resource", "ada"): [story.waiting],
        ("--queue", "elsewhere"): [story.orphan],
        ("--text", "i-1"): [story.failed],
        ("--text", "loud nonsense"): [],
        ("--text", "LOUD lookuperror"): [story.failed],
        ("--since", "1 hour", "--status", "pending"): [story.orphan],
        ("--since", "2035-01-01T00:00:00Z"): [],
        ("--until", "1 hour"): [],
    }.items():
        assert [line.split()[0] for line in cli.says("runs", *filters)[1:]] == [str(run) for run in found], filters
    [child] = cli.json("runs", "--parent", story.parent)["items"]
    assert (child["workflow_id"], child["parent_run_id"]) == ("sign-up", str(story.parent))


def test_pages_follow_one_another_by_their_cursors(story: Story) -> None:
    cli = Cli(story.url)
    whole = [run["id"] for run in cli.json("runs")["items"]]
    first = cli.json("runs", "--limit", 2)
    second = cli.json("runs", "--limit", 2, "--cursor", first["next_cursor"])
    third = cli.json("runs", "--limit", 2, "--cursor", second["next_cursor"])
    assert [run["id"] for page in (first, second, third) for run in page["items"]] == whole
    assert third["next_cursor"] is None
    back = cli.json("runs", "--limit", 2, "--cursor", second["prev_cursor"], "--newer")
    assert back["items"] == first["items"]


def test_a_waiting_run_is_shown_with_what_would_end_the_wait(story: Story) -> None:
    about, steps, events = "\n".join(Cli(story.url).says("show", story.waiting)).split("\n\n")
    assert "waits for  event 'confirmed', for " in about
    assert f"end it by  pgworkflows trigger {story.waiting} confirmed" in about.splitlines()
    assert 'input      {"email": "ada@example.com"}' in about.splitlines()
    assert [line.split()[:3] for line in steps.splitlines()] == [
        ["STEP", "KIND", "STATUS"],
        ["create-user", "run", "completed"],
        ["await-confirmation", "wait_for", "waiting"],
        ["greet", "-", "ahead"],
    ]
    assert [line.split()[0] for line in events.splitlines()] == ["EVENT", "hurry"]


def test_a_parent_is_shown_with_its_child_and_the_child_with_its_parent(story: Story) -> None:
    cli = Cli(story.url)
    _, steps, children = "\n".join(cli.says("show", story.parent)).split("\n\n")
    child = children.splitlines()[1].split()[0]
    assert children.splitlines()[1].split()[1:] == ["sign-up", "waiting", "sign-up"]
    assert f"run {child}" in steps
    assert f"parent     {story.parent}, step sign-up" in cli.says("show", child)


def test_a_run_may_be_named_by_what_only_its_id_begins_with(told: Story) -> None:
    cli = Cli(told.url)
    short = {run: str(run)[:20] for run in (told.waiting, told.failed, told.parent)}
    assert cli.json("show", short[told.waiting])["run"]["id"] == str(told.waiting)
    assert cli.json("runs", "--parent", short[told.parent]) == cli.json("runs", "--parent", told.parent)
    [exported] = cli.says("export", short[told.failed].upper())
    assert json.loads(exported)["run"]["id"] == str(told.failed)
    assert cli.says("trigger", short[told.waiting], "hurry")[0].startswith("event hurry was sent")
    assert cli.says("cancel", short[told.waiting]) == [f"run {told.waiting} is cancelled"]
    many = cli("cancel", str(told.waiting)[:6])
    assert many.exit_code == Exit.USAGE
    assert many.stderr.startswith(f"Error: '{str(told.waiting)[:6]}' begins the ids of several runs, such as ")
    assert many.stderr.endswith(": write more of it\n")
    none = cli("show", "00000000")
    said = "Error: run '00000000' was not found: the id of none begins so\n"
    assert (none.exit_code, none.stderr) == (Exit.NOT_FOUND, said)


def test_a_run_in_hand_is_shown_with_its_worker_and_all_its_steps_ahead(cli: Cli) -> None:
    with WorkflowEngine(cli.url, workflows=WORKFLOWS) as engine:
        engine.start(worker=False)
        engine.worker().run_until_idle("30s")
        run = engine.start_workflow("invoice", {})
    with HandWorker(cli.url, ["invoice"]) as worker:
        worker.claim_one()
        lines = cli.says("show", run.id)
        assert "in hand of  worker by hand:0" in lines
        assert cli.json("show", run.id)["worker"] == {"hostname": "by hand", "pid": 0, "live": True}
        rows(cli.url, "update pgworkflows.workers set heartbeat_at = heartbeat_at - interval '1 hour'")
        assert "in hand of  worker by hand:0, which is silent" in cli.says("show", run.id)
    assert [line.split()[:3] for line in lines[-2:]] == [["count", "-", "ahead"], ["charge", "-", "ahead"]]


def test_payloads_are_shown_in_short_or_whole_or_not_at_all(story: Story) -> None:
    cli = Cli(story.url)
    [short] = [line for line in cli.says("show", story.orphan) if line.startswith("input")]
    assert short.endswith("x…")
    whole = cli.says("show", story.orphan, "--payloads")
    assert f'    "long": "{"x" * 500}"' in whole
    assert "xxx" not in "\n".join(cli.says("show", story.orphan, "--no-payloads"))
    assert cli.json("show", story.orphan)["run"]["input"] == {"long": "x" * 500}


def test_the_error_of_a_run_is_shown_in_a_line_and_with_its_traceback_when_asked(story: Story) -> None:
    cli = Cli(story.url)
    assert "Traceback" not in "\n".join(cli.says("show", story.failed))
    whole = cli.says("show", story.failed, "--payloads")
    assert "error of charge:" in whole
    assert "  Traceback (most recent call last):" in whole
    assert "result of count:" in whole


@pytest.mark.parametrize("words", [["runs"], ["show"], ["show", "--payloads"], ["show", "--json"], ["runs", "--json"]])
def test_what_the_database_holds_cannot_steer_a_terminal(story: Story, words: list[str]) -> None:
    for run_id in (story.failed, story.waiting):
        printed = Cli(story.url)(*words, *([run_id] if words[0] == "show" else [])).stdout
        assert not [each for each in ESCAPES if each in printed]
    if "--json" not in words:
        assert "[bold]loud[/bold]" in Cli(story.url)(*words, *([story.failed] if words[0] == "show" else [])).stdout


def test_a_run_with_more_steps_than_a_page_is_shown_whole(story: Story) -> None:
    cli = Cli(story.url)
    rows(
        story.url,
        "insert into pgworkflows.steps (run_id, position, step_id, kind, status, output, attempts, started_at, "
        "completed_at) select %s, n, 'more-' || n, 'run', 'completed', '1', 1, now(), now() "
        "from generate_series(10, 1500) as n",
        story.parent,
    )
    try:
        assert sum(line.startswith("more-") for line in cli.says("show", story.parent)) == 1491
        assert len(cli.json("show", story.parent)["entries"]) == 1492
        rows(story.url, "update pgworkflows.steps set run_id = %s where step_id like 'more-%%'", story.failed)
        followed = cli("tail", story.failed)
        assert (followed.exit_code, followed.stdout.count("  invoice  more-")) == (1, 1491)
    finally:
        rows(story.url, "delete from pgworkflows.steps where step_id like 'more-%%'")


def test_the_status_tells_what_is_not_well(told: Story) -> None:
    cli = Cli(told.url)
    lines = cli.says("status")
    assert lines[:3] == ["database  reachable", "schema    migrated", "workers   0 live"]
    assert [line.split()[:3] for line in lines[5:]][1:] == [
        ["default", "onboard", "0"],
        ["default", "sign-up", "0"],
        ["elsewhere", "retired", "1"],
    ]
    unwell = cli("status", "--min-workers", "1", "--max-lag", "0 s")
    assert unwell.exit_code == Exit.REFUSED
    assert "problem   live workers: 0; at least 1 are wanted" in unwell.stdout.splitlines()
    found = cli.json("status")
    assert (found["ok"], found["live_workers"], len(found["backlog"])) == (True, 0, 3)


def test_the_workers_are_listed(database_url: str) -> None:
    cli = Cli(database_url)
    with WorkflowEngine(database_url, workflows=WORKFLOWS) as engine, working(engine):
        [worker] = until(
            lambda: [each for each in cli.json("workers") if each["workflows"]], "the worker says which it serves"
        )
        head, line = cli.says("workers")
    assert (worker["live"], worker["queues"], sorted(worker["workflows"])) == (
        True,
        ["default"],
        ["invoice", "nightly", "onboard", "sign-up"],
    )
    assert head.split()[0] == "WORKER"
    assert line.split()[0] == worker["id"]
    assert cli.says("workers") == [" ".join(head.split()).replace(" ", "  ")]


def test_what_is_stuck_is_told_with_its_remedy(told: Story) -> None:
    cli = Cli(told.url)
    assert cli.says("stuck") == ["nothing is stuck"]
    assert cli.json("stuck") == []
    stuck = cli("stuck", "--lag-over", "0 s")
    assert stuck.exit_code == Exit.REFUSED
    assert "remedy" in stuck.stdout
    assert f"run     {told.orphan}" in stuck.stdout.splitlines()
    found = json.loads(cli("stuck", "--lag-over", "0 s", "--json").stdout)
    assert [(each["workflow_id"], each["runs"]) for each in found] == [("retired", 1)]


def test_schedules_are_listed_paused_resumed_and_triggered(told: Story) -> None:
    cli = Cli(told.url)
    advance(told.url)
    assert cli.says("schedules")[1].split()[0] == "nightly"
    assert cli.says("schedules", "pause", "nightly") == ["the next tick of workflow nightly: paused"]
    assert "paused" in cli.says("schedules")[1]
    assert cli.json("schedules", "resume", "nightly")["paused_at"] is None
    assert cli.json("schedules")[0]["expression"] == "0 3 * * *"
    [line] = cli.says("schedules", "trigger", "nightly")
    assert line.endswith(" of workflow nightly is pending")
    assert cli.json("schedules", "trigger", "nightly")["workflow_id"] == "nightly"


def test_every_remedy_is_a_command_with_the_options_it_names() -> None:
    folder = Path(pgworkflows.__file__).parent / "inspection"
    text = "\n".join(path.read_text() for path in folder.glob("*.py"))
    remedies = re.findall(r"\bpgworkflows ([a-z-]+)((?: [-A-Z:a-z_{}]+)*)", text)
    assert len(remedies) > 8
    with program.make_context("pgworkflows", ["status"]) as ctx:
        for name, words in remedies:
            command = program.get_command(ctx, name)
            assert command is not None, name
            options = {word for each in command.params for word in each.opts}
            assert {word for word in words.split() if word.startswith("--")} <= options


# Steering -----------------------------------------------------------------------------------------------------------


def test_a_start_says_which_run_it_has_started(cli: Cli, tmp_path: Path) -> None:
    [line] = cli.says("start", "greet", "--input", '{"name": "Ada"}', "--resource", "ada", "--priority", "high")
    (tmp_path / "input.json").write_text("[1, 2]")
    given = [
        json.loads(cli("start", "greet", "--json", *words, input="null").stdout)
        for words in (["--input", f"@{tmp_path}/input.json", "--priority", "7"], ["--input", "-"], [])
    ]
    assert [(run["input"], run["priority"]) for run in given] == [([1, 2], 7), (None, 0), (None, 0)]
    with WorkflowClient(cli.url) as client:
        run = client.get_runs(resource_id="ada").items[0]
    assert line == f"run {run.id} of workflow greet is pending"
    assert (run.input, run.priority) == ({"name": "Ada"}, 100)


def test_a_start_of_a_workflow_that_no_worker_has_had_says_so_and_is_a_start(cli: Cli) -> None:
    started = cli("start", "sing-up", "--json")
    assert (started.exit_code, json.loads(started.stdout)["status"]) == (0, "pending")
    assert started.stderr == "note: no worker has ever had workflow 'sing-up': the run waits for one that has\n"


def test_an_event_with_data_ends_the_wait(told: Story) -> None:
    cli = Cli(told.url)
    [line] = cli.says("trigger", told.waiting, "confirmed", "--data", '{"at": "noon"}')
    assert line == f"event confirmed was sent to run {told.waiting}, which is pending"
    advance(told.url)
    assert cli.json("show", told.waiting)["run"]["output"]["confirmed"] == {"at": "noon"}
    refused = cli("trigger", told.waiting, "confirmed")
    assert refused.exit_code == Exit.REFUSED
    assert "is completed; only pending, running, waiting, paused runs can get events" in refused.stderr


def test_runs_are_paused_resumed_cancelled_and_retried_by_their_ids(told: Story) -> None:
    cli = Cli(told.url)
    for words, status in (("pause", "paused"), ("resume", "pending"), ("cancel", "cancelled"), ("retry", "pending")):
        assert cli.says(words, told.waiting) == [f"run {told.waiting} is {status}"]
        assert status_of(told, told.waiting) == status


def test_a_fast_forward_completes_the_wait_with_what_it_is_given(told: Story) -> None:
    cli = Cli(told.url)
    assert cli.says("fast-forward", told.waiting, "--data", '"by hand"') == [f"run {told.waiting} is pending"]
    advance(told.url)
    assert cli.json("show", told.waiting)["run"]["output"]["confirmed"] == "by hand"


def test_a_run_in_no_wait_that_can_be_completed_is_not_said_to_have_been_forwarded(told: Story) -> None:
    cli = Cli(told.url)
    assert cli.says("fast-forward", told.parent, told.failed) == [
        f"run {told.parent} is waiting: it was not fast-forwarded",
        f"run {told.failed} is failed: it was not fast-forwarded",
    ]
    assert cli.says("fast-forward", "--since", "1 hour", "--yes") == ["2 runs fast-forwarded, 1 left as they were"]


def test_one_refusal_does_not_keep_the_other_runs_from_being_changed(told: Story) -> None:
    cli = Cli(told.url)
    done = cli("cancel", told.failed, told.waiting, told.orphan)
    assert done.exit_code == Exit.REFUSED
    assert done.stdout.splitlines() == [f"run {told.waiting} is cancelled", f"run {told.orphan} is cancelled"]
    assert done.stderr.startswith(f"Error: run {told.failed} is failed; only ")
    assert cli("retry", told.failed, "none", "--json").exit_code == Exit.NOT_FOUND
    lines = cli("cancel", told.failed, told.waiting, uuid4(), "--json")
    assert lines.exit_code == Exit.REFUSED
    assert [json.loads(line).get("exit_status", 0) for line in lines.stdout.splitlines()] == [0, 1, 4]


def test_filters_choose_runs_and_whoever_asks_is_asked(told: Story) -> None:
    cli = Cli(told.url)
    no = cli("cancel", "--workflow", "sign-up", input="n\n")
    assert (no.exit_code, no.stdout) == (Exit.REFUSED, "")
    assert "2 runs would be cancelled. Go on? [y/N]: n" in no.stderr
    assert str(told.waiting) in no.stderr
    nobody = cli("cancel", "--workflow", "sign-up")
    assert nobody.exit_code == Exit.REFUSED
    assert status_of(told, told.waiting) == "waiting"
    assert cli.says("cancel", "--workflow", "sign-up", input="y\n") == ["2 runs cancelled"]
    assert cli.says("cancel", "--workflow", "sign-up", input="y\n") == ["0 runs cancelled"]
    assert cli.says("retry", "--resource", "ada", "--yes") == ["1 run retried"]
    assert status_of(told, told.waiting) == "pending"


def test_whoever_asks_is_asked_also_where_a_count_comes_to_none_of_the_runs(
    told: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may stand behind more others than a count looks at."""
    monkeypatch.setattr(Inspector, "count_runs", lambda *_, **__: Count(0, at_least=True))
    asked = Cli(told.url)("cancel", "--workflow", "sign-up", input="n\n")
    assert (asked.exit_code, asked.stdout) == (Exit.REFUSED, "")
    assert "at least 2 runs would be cancelled. Go on?" in asked.stderr
    assert status_of(told, told.waiting) == "waiting"


def test_a_run_that_has_moved_on_meanwhile_is_no_failure(told: Story) -> None:
    """A child goes with its parent, which was changed before it, or after."""
    cli = Cli(told.url)
    [line] = cli.says("cancel", "--since", "1 hour", "--status", "waiting", "--status", "pending", "-y")
    assert line == "4 runs cancelled"
    assert {run["status"] for run in cli.json("runs")["items"]} == {"cancelled", "failed"}


def test_runs_beyond_a_page_are_changed_too(cli: Cli) -> None:
    with WorkflowClient(cli.url) as client:
        client.start_workflows("many", [None] * 520)
    assert cli.says("cancel", "--workflow", "many", "-y") == ["520 runs cancelled"]
    assert cli.json("runs", "--workflow", "many", "--status", "pending")["items"] == []


def test_a_database_that_is_lost_ends_it_all_and_says_how_far_it_came(
    told: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = WorkflowClient.cancel_workflow

    def lose(client: WorkflowClient, run_id: UUID, **options: Any) -> WorkflowRun:
        if run_id == told.parent:
            raise ConfigurationError("the server closed the connection")
        return change(client, run_id, **options)

    monkeypatch.setattr(WorkflowClient, "cancel_workflow", lose)
    done = Cli(told.url)("cancel", "--since", "1 hour", "--yes")
    assert (done.exit_code, done.stdout) == (Exit.DATABASE, "2 runs cancelled\n")
    assert done.stderr == "Error: the server closed the connection\n"
    assert status_of(told, told.waiting) == "waiting"


def test_each_run_that_filters_found_is_a_line_of_json(told: Story) -> None:
    lines = Cli(told.url).says("pause", "--status", "waiting", "--status", "pending", "--yes", "--json")
    assert sorted(json.loads(line)["status"] for line in lines) == ["paused"] * 4


# Upkeep -------------------------------------------------------------------------------------------------------------


def test_migrations_are_planned_and_applied(empty_database_url: str) -> None:
    cli = Cli(empty_database_url)
    planned = cli.says("migrate", "--plan")
    assert planned[0] == "would apply 0001_initial"
    unwell = cli("status")
    assert (unwell.exit_code, "schema    not migrated" in unwell.stdout.splitlines()) == (Exit.DATABASE, True)
    assert cli("runs").exit_code == Exit.DATABASE
    assert cli.json("migrate", "--plan") == {"pending": [line.split()[-1] for line in planned]}
    assert cli.says("migrate") == [line.replace("would apply", "applied") for line in planned]
    assert cli.says("migrate") == ["nothing to apply"]
    assert cli.json("migrate") == {"applied": []}


def test_finished_runs_are_pruned(told: Story) -> None:
    cli = Cli(told.url)
    assert cli.says("prune", "--older-than", "1 day") == ["0 runs deleted"]
    assert cli.json("prune", "--older-than", "1 microsecond", "--workflow", "invoice") == {"deleted": 1}
    assert cli.says("prune") == ["0 runs deleted"]
    assert cli("show", told.failed).exit_code == Exit.NOT_FOUND


def test_roles_are_granted_and_revoked(cli: Cli) -> None:
    role = f"cli_{uuid4().hex[:12]}"
    rows(cli.url, f"create role {role}")
    try:
        assert cli.says("grant", "--reader", role) == [f"{role} is a reader"]
        assert rows(cli.url, "select kind from pgworkflows.roles where role = %s", role) == [("reader",)]
        assert cli.says("revoke", role) == [f"{role} may do nothing any more"]
    finally:
        rows(cli.url, f"drop owned by {role}; drop role {role}")


def test_an_export_can_be_replayed(told: Story, tmp_path: Path) -> None:
    cli = Cli(told.url)
    cli.says("trigger", told.waiting, "confirmed")
    advance(told.url)
    kept = tmp_path / "run.json"
    kept.write_text("\n".join(cli.says("export", told.waiting)))
    check_replay(WORKFLOWS[0], kept)


FOR_OTHERS = {
    "top": "reader",
    "stuck": "reader",
    "workers": "reader",
    "schedules": "worker",
    "prune": "worker",
    "fast-forward": "worker",
}


@pytest.mark.direct("the pooler does not know the role")
def test_a_client_role_shows_and_steers_its_own_runs(cli: Cli) -> None:
    role = f"cli_{uuid4().hex[:12]}"
    rows(cli.url, f"create role {role} login password 'pw'")
    try:
        cli.says("grant", "--client", role)
        own = Cli(make_conninfo(cli.url, user=role, password="pw"))
        with WorkflowEngine(cli.url, workflows=WORKFLOWS) as engine:
            engine.start(worker=False)
            others = engine.start_workflow("invoice", {})
            run = own.json("start", "sign-up", "--input", '{"email": "ada@example.com"}')["id"]
            engine.worker().run_until_idle("30s")
        assert [line.split()[0] for line in own.says("runs")[1:]] == [run]
        shown = own.says("show", run)
        assert [line.split()[0] for line in shown[shown.index("") + 2 :]] == ["create-user", "await-confirmation"]
        assert own("show", others.id).exit_code == Exit.NOT_FOUND
        assert own.says("cancel", run) == [f"run {run} is cancelled"]
        assert own("tail", run).stdout.splitlines()[-1].endswith("  cancelled")
        status = own.says("status")
        assert status[0] == "database  reachable"
        assert status[1].startswith("note      the database user may not see schema, workers and queue")
        for name, option in FOR_OTHERS.items():
            denied = own(name, *([run] if name == "fast-forward" else []))
            assert denied.exit_code == Exit.DATABASE
            assert "Error: the database user lacks a privilege (permission denied for " in denied.stderr
            assert denied.stderr.endswith(f" make one of a role: pgworkflows grant --{option} ROLE\n")
        assert own("migrate").stderr.endswith(": migrate is for the owner of the schema: connect as that\n")
        cli.says("revoke", role)
        assert own("tail").exit_code == Exit.DATABASE
        assert "export is for clients (their own runs), workers and readers" in own("export", run).stderr
    finally:
        rows(cli.url, f"drop owned by {role}; drop role {role}")


# Completion ---------------------------------------------------------------------------------------------------------


def completions(url: str | None, *words: str) -> list[str]:
    """What the shell would be offered for the last of these words."""
    from click.shell_completion import ShellComplete

    *before, incomplete = words
    given = [] if url is None else ["--url", url]
    shell = ShellComplete(program, {}, "pgworkflows", "_PGWORKFLOWS_COMPLETE")
    return [item.value for item in shell.get_completions([*given, *before], incomplete)]


def test_statuses_workflows_and_runs_are_completed(story: Story) -> None:
    assert completions(story.url, "runs", "--status", "pa") == ["paused"]
    assert completions(story.url, "runs", "--workflow", "") == ["invoice", "nightly", "onboard", "sign-up"]
    assert completions(story.url, "start", "on") == ["onboard"]
    assert str(story.failed) in completions(story.url, "show", "")
    assert completions(story.url, "show", str(story.failed)[:-1]) == [str(story.failed)]
    assert completions(story.url, "sched") == ["schedules"]
    assert completions(story.url, "schedules", "pause", "") == ["nightly"]


def test_a_name_that_a_shell_would_take_apart_is_not_completed(database_url: str) -> None:
    rows(
        database_url,
        "insert into pgworkflows.workflows (id, queue, priority, retries) "
        "values ('x;touch$IFS/here;', 'default', 0, 0), ('xylophone', 'default', 0, 0)",
    )
    assert completions(database_url, "start", "x") == ["xylophone"]


def test_without_a_database_nothing_is_completed_and_nothing_is_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert completions(None, "show", "") == []
    assert completions("postgresql://nobody@127.0.0.1:1/nothing", "show", "") == []
    assert list(tmp_path.iterdir()) == []


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
