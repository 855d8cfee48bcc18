"""Writes what docs/cli.md shows: the sessions, run again on a database of their own, and the help of every command.

usage: scripts/docs_cli.py [--reference | --check]

`--reference` writes the help only. `--check` writes nothing: it fails if the page lacks a command's help as it is now,
or shows a command or an option that does not exist. `make docs-cli` runs it.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from pgworkflows import EmbeddedPostgres, WorkflowEngine, workflow
from pgworkflows.cli.program import program

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "cli.md"
REFERENCE = "<!-- what follows is written by make docs-cli -->\n"
SESSION = re.compile(r"(?<=^```text\n)(?=\$ ).*?(?=^```$)", re.MULTILINE | re.DOTALL)
WIDTH = 110


def refuse(customer: int) -> None:
    raise LookupError(f"there is no customer {customer}")


@workflow("sign-up")
def sign_up(step: Any, input: Any) -> Any:
    user = yield step.run("create-user", lambda: {"id": 7, "email": input["email"]})
    yield step.run("send-link", lambda: "sent")
    click = yield step.wait_for("await-click", "link-clicked", timeout="24 hours")
    yield step.run("welcome", lambda: "sent")
    return {"user": user["id"], "clicked": click}


@workflow("invoice")
def invoice(step: Any, input: Any) -> Any:
    total = yield step.run("add-up", lambda: 129.9)
    yield step.run("charge", refuse, input["customer"])
    return total


@workflow("clean-up", schedule="0 3 * * *", timezone="Europe/Berlin")
def clean_up(step: Any) -> Any:
    yield step.run("sweep", lambda: 0)


def main() -> None:
    """Do what the words say."""
    page = PAGE.read_text()
    if "--check" in sys.argv:
        problems = list(found_wrong(page))
        for problem in problems:
            print(problem)
        sys.exit(bool(problems))
    if "--reference" not in sys.argv:
        page = with_sessions(page)
    PAGE.write_text(with_reference(page))


def with_reference(page: str) -> str:
    """The page with the help of every command as it is now."""
    return page.partition(REFERENCE)[0] + REFERENCE + "\n".join(reference())


def reference() -> Iterator[str]:
    """A heading and the help for each command."""
    with click.Context(program, info_name="pgworkflows", max_content_width=WIDTH, terminal_width=WIDTH) as root:
        yield f"\n```text\n{program.get_help(root)}\n```\n"
        for name, command, parent in commands(program, root):
            ctx = click.Context(command, info_name=name.split()[-1], parent=parent, terminal_width=WIDTH)
            ctx.max_content_width = WIDTH
            yield f"### {name}\n\n```text\n{command.get_help(ctx)}\n```\n"


def commands(group: click.Group, ctx: click.Context) -> Iterator[tuple[str, click.Command, click.Context]]:
    """Every command with its words, and the context it stands in."""
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        assert command is not None
        path = f"{ctx.command_path} {name}".removeprefix("pgworkflows ")
        yield path, command, ctx
        if isinstance(command, click.Group):
            yield from commands(command, click.Context(command, info_name=name, parent=ctx))


def with_sessions(page: str) -> str:
    """The page with each session as it goes now, in order, on a database of their own."""
    with tempfile.TemporaryDirectory() as folder, EmbeddedPostgres() as server:
        environment = {
            **os.environ,
            "DATABASE_URL": server.url,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        with WorkflowEngine(server.url, workflows=[sign_up, invoice, clean_up]) as engine:
            engine.start()
            waiting = engine.start_workflow(sign_up, {"email": "ada@example.com"}, resource_id="ada")
            failed = [engine.start_workflow(invoice, {"customer": 40 + number}) for number in range(3)]
            engine.start_workflow(sign_up, {"email": "bob@example.com"}, resource_id="bob")
            for run in failed:
                engine.wait_for_run(run.id)
            environment |= {"RUN": str(waiting.id), "FAILED": str(failed[0].id)}
            return SESSION.sub(lambda session: replayed(session[0], Path(folder), environment), page)


def replayed(session: str, folder: Path, environment: dict[str, str]) -> str:
    """The same commands with what they print now."""
    lines: list[str] = []
    for command in re.findall(r"^\$ (.+)$", session, re.MULTILINE):
        done = subprocess.run(
            ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        lines += [f"$ {command}", *done.stdout.splitlines(), *done.stderr.splitlines()]
    return "\n".join(lines).replace(f"{ROOT}/", "") + "\n"


def found_wrong(page: str) -> Iterator[str]:
    """What the page does not have as it is."""
    if with_reference(page) != page:
        yield f"{PAGE.name} has the help of other commands: make docs-cli ARGS=--reference"
    root = click.Context(program, info_name="pgworkflows")
    known = {name: {"--help", *options(command)} for name, command, _ in commands(program, root)}
    prose = page.partition(REFERENCE)[0]
    sessions = "\n".join(re.findall(r"^\$ .+$", prose, re.MULTILINE))
    shown = [*re.findall(r"\bpgworkflows [^;|\n]+", sessions), *re.findall(r"`(pgworkflows [^`|]+)`", prose)]
    for line in shown:
        words = shlex.split(line)[1:]
        if words and not words[0].startswith(("-", "…")):
            path = " ".join(words[:2]) if " ".join(words[:2]) in known else words[0]
            if path not in known:
                yield f"there is no command {path!r}: {line}"
            elif unknown := {word for word in words if word.startswith("--")} - known[path]:
                yield f"{path} has no {', '.join(sorted(unknown))}: {line}"


def options(command: click.Command) -> Iterator[str]:
    """The words of a command's options."""
    for each in command.params:
        yield from (*each.opts, *each.secondary_opts) if isinstance(each, click.Option) else ()


if __name__ == "__main__":
    main()
