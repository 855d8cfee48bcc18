"""The command line as real processes: piped, and in a terminal of any width."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import resource
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from urllib.request import urlopen

import pytest
from cli_story import ESCAPES, Story
from conftest import Databases
from rich.cells import cell_len
from working import value

PROGRAM = [sys.executable, "-m", "pgworkflows"]
SCRIPT = Path(sys.executable).with_name("pgworkflows")
SGR = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture(scope="module")
def story(databases: Databases, migrated_template: str) -> Iterator[Story]:
    with databases.fresh(migrated_template) as url:
        yield Story(url)


def environment(url: str | None, **variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES", "NO_COLOR", "TERM"}}
    return {**kept, **({} if url is None else {"DATABASE_URL": url}), "TERM": "xterm-256color", **variables}


def piped(url: str | None, *words: object, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *map(str, words)],
        env=environment(url, **variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class Terminal:
    """A process whose standard streams are a terminal."""

    def __init__(self, url: str, *words: object, width: int = 80, **variables: str) -> None:
        self._mine, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
        self.process = subprocess.Popen(
            [*PROGRAM, *map(str, words)],
            env=environment(url, **variables),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(theirs)
        self._seen = b""

    def type(self, text: str) -> None:
        os.write(self._mine, text.encode())

    def interrupt(self) -> None:
        """Control-C until it ends: Python may miss the first, which comes while it is about to read."""
        while self.process.poll() is None:
            self.type("\x03")
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(5)

    def shows(self, text: str) -> None:
        """Wait until it has shown this."""
        while text not in self._seen.decode(errors="replace"):
            assert self._read(), f"{text!r} is not in {self._seen!r}"

    def rest(self) -> str:
        """All that it has shown, once it has ended."""
        while self._read():
            pass
        self.process.wait(30)
        os.close(self._mine)
        return self._seen.decode().replace("\r\n", "\n")

    def _read(self) -> bool:
        try:
            more = os.read(self._mine, 65536)
        except OSError:  # it has ended
            return False
        self._seen += more
        return bool(more)


@cache
def shown(story: Story, *words: object, width: int = 80, **variables: str) -> str:
    """What a terminal of a width gets to see of a command that succeeds."""
    terminal = Terminal(story.url, *words, width=width, **variables)
    seen = terminal.rest()
    assert terminal.process.returncode == 0, seen
    return seen


# Terminals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [40, 80, 200])
def test_nothing_is_wider_than_the_terminal(story: Story, width: int) -> None:
    for words in (["runs"], ["show", story.failed]):
        lines = SGR.sub("", shown(story, *words, width=width)).splitlines()
        assert max(map(cell_len, lines)) <= width
        assert not [each for each in ESCAPES if each in "\n".join(lines)]


def test_a_narrow_terminal_gets_a_block_for_each_row_and_a_wide_one_the_table(story: Story) -> None:
    assert SGR.sub("", shown(story, "runs", width=200)).startswith("RUN  ")
    narrow = SGR.sub("", shown(story, "runs", width=40))
    assert [block.splitlines()[0] for block in narrow.split("\n\n")] == ["run"] * 5
    assert f"\n  {story.failed}\nworkflow  invoice\n" in narrow  # in one piece, to be taken with the mouse


def test_a_terminal_is_told_in_words_that_there_is_nothing(story: Story) -> None:
    for words in (["workers"], ["runs", "--resource", "nobody"]):
        for width in (20, 80):
            assert SGR.sub("", shown(story, *words, width=width)) == f"no {words[0]}\n"
        assert piped(story.url, *words).stdout.split()[0] == words[0][:-1].upper()


def test_statuses_have_colours_in_a_terminal_unless_no_color_is_set(story: Story) -> None:
    assert "\x1b[1;31mfailed" in shown(story, "runs")
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", shown(story, "runs", NO_COLOR="1"))


def test_a_question_is_answered_at_the_terminal(databases: Databases, migrated_template: str) -> None:
    with databases.fresh(migrated_template) as url:
        story = Story(url)
        terminal = Terminal(url, "cancel", "--workflow", "sign-up")
        terminal.shows("2 runs would be cancelled. Go on? [y/N]:")
        terminal.type("y\n")
        assert "2 runs cancelled" in terminal.rest()
        terminal = Terminal(url, "retry", "--resource", "ada")
        terminal.shows("Go on?")
        terminal.interrupt()
        assert "Aborted!" in terminal.rest()
        assert terminal.process.returncode == 1
        assert value(url, "select status from pgworkflows.runs where id = %s", story.waiting) == "cancelled"


def test_who_sits_before_a_terminal_is_asked_before_runs_are_deleted(
    databases: Databases, migrated_template: str
) -> None:
    with databases.fresh(migrated_template) as url:
        story = Story(url)
        for answer, said, left in (("n\n", "Aborted!", 1), ("y\n", "1 run deleted", 0)):
            terminal = Terminal(url, "prune", "--older-than", "1 microsecond")
            terminal.shows("up to 1 run would be deleted, for good. Go on? [y/N]:")
            terminal.type(answer)
            assert said in terminal.rest()
            assert value(url, "select count(*) from pgworkflows.runs where id = %s", story.failed) == left
        assert "0 runs deleted" in shown(story, "prune", "--older-than", "1 microsecond")


# Pipes --------------------------------------------------------------------------------------------------------------


def test_nothing_is_cut_and_nothing_else_is_said_in_a_pipe(story: Story) -> None:
    done = piped(story.url, "runs", "--limit", 2, COLUMNS="20")
    assert (done.returncode, done.stderr) == (0, "")
    assert str(story.orphan) in done.stdout
    assert not {"…", "\x1b"} & set(done.stdout)
    assert len(done.stdout.splitlines()) == 3


def test_a_reader_that_has_seen_enough_is_no_error(story: Story) -> None:
    for words in ("runs --json", f"show {story.failed} --payloads"):
        command = f"{sys.executable} -m pgworkflows {words} | (exec <&-; sleep 0.01)"
        done = subprocess.run(
            ["sh", "-c", command], env=environment(story.url), capture_output=True, text=True, timeout=60, check=False
        )
        assert done.stderr == ""


def test_without_standard_input_nothing_is_changed_unasked_and_nothing_is_read(story: Story) -> None:
    for words, status, said in (
        ("cancel --workflow sign-up", 1, "Aborted!"),
        ("start greet --input -", 2, "standard input is closed"),
    ):
        command = f"{sys.executable} -m pgworkflows {words} <&-"
        done = subprocess.run(
            ["sh", "-c", command], env=environment(story.url), capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stdout) == (status, "")
        assert said in done.stderr
        assert "Traceback" not in done.stderr
    assert value(story.url, "select status from pgworkflows.runs where id = %s", story.waiting) == "waiting"


@pytest.mark.parametrize("words", ["runs", "runs --json", "top", "tail {run}"])
def test_a_full_disk_is_told_in_a_line(story: Story, words: str) -> None:
    command = [*PROGRAM, *words.format(run=story.failed).split()]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command, env=environment(story.url), stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
    assert (done.returncode, done.stderr) == (1, "Error: the output cannot be written: No space left on device\n")


def test_an_encoding_that_lacks_a_character_shows_its_number(story: Story) -> None:
    done = piped(story.url, "show", story.orphan, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\u2026" in done.stdout


# The program --------------------------------------------------------------------------------------------------------


def test_the_script_and_the_module_are_the_same_program(story: Story) -> None:
    helps = [
        subprocess.run([*program, "--help"], capture_output=True, text=True, check=True).stdout
        for program in ([str(SCRIPT)], PROGRAM)
    ]
    assert helps[0] == helps[1]
    assert helps[0].startswith("Usage: pgworkflows [OPTIONS]")
    done = piped(None, "--version")
    assert done.stdout == "pgworkflows, version 0.1.0\n"


def test_the_help_takes_less_than_300_ms() -> None:
    """Of the processor's time: others may have it as well."""

    def used_s() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    before = used_s()
    subprocess.run([str(SCRIPT), "--help"], capture_output=True, check=True)
    assert used_s() - before < 0.3


def test_the_environment_names_database_and_schema(story: Story) -> None:
    elsewhere = piped(story.url, "runs", PGWORKFLOWS_SCHEMA="elsewhere")
    assert elsewhere.returncode == 3
    assert elsewhere.stderr.startswith("Error: ")
    named = piped(None, "--url", story.url, "--schema", "pgworkflows", "runs", PGWORKFLOWS_SCHEMA="elsewhere")
    assert str(story.failed) in named.stdout


def test_a_server_that_is_not_there_is_one_line_without_a_traceback() -> None:
    done = piped("postgresql://nobody@127.0.0.1:1/nothing", "runs")
    assert (done.returncode, done.stdout) == (3, "")
    assert re.fullmatch(r"Error: cannot connect to PostgreSQL: .*\n", done.stderr)


def test_shells_get_a_script_that_completes(story: Story) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "_pgworkflows_completion" in piped(None, _PGWORKFLOWS_COMPLETE=f"{shell}_source").stdout
    done = piped(story.url, _PGWORKFLOWS_COMPLETE="zsh_complete", COMP_WORDS="pgworkflows start on", COMP_CWORD="2")
    assert done.stdout.splitlines() == ["plain", "onboard", "_"]


def test_a_shell_that_has_the_script_completes_words_by_it(story: Story) -> None:
    script = """
    eval "$(_PGWORKFLOWS_COMPLETE=bash_source pgworkflows)"
    for words in "runs --status fa" "start in" "show $FAILED"; do
        COMP_WORDS=(pgworkflows $words) COMPREPLY=()
        COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        _pgworkflows_completion pgworkflows
        echo "${COMPREPLY[@]}"
    done
    """
    variables = {"FAILED": str(story.failed)[:-2], "PATH": f"{SCRIPT.parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        env=environment(story.url, **variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout.split(), done.stderr) == (["failed", "invoice", str(story.failed)], "")


def test_the_dashboard_is_served_until_it_is_told_to_stop(story: Story) -> None:
    serving = subprocess.Popen(
        [*PROGRAM, "ui", "--port", "0"], env=environment(story.url), stderr=subprocess.PIPE, text=True
    )
    try:
        assert serving.stderr is not None
        said = serving.stderr.readline()
        address = said.split()[4].rstrip(",")
        with urlopen(address) as answer:
            assert b"sign-up" in answer.read()
        port = address.rstrip("/").rpartition(":")[2]
        taken = piped(story.url, "ui", "--port", port)
        assert (taken.returncode, taken.stdout) == (1, "")
        assert taken.stderr.startswith(f"Error: the dashboard cannot listen on 127.0.0.1:{port}: ")
        serving.send_signal(signal.SIGTERM)
        assert serving.wait(30) == 0
    finally:
        serving.kill()
        serving.communicate()


def without(module: str, *words: str, url: str | None = None) -> subprocess.CompletedProcess[str]:
    """The program where a module is not installed."""
    program = f"""
import sys
from importlib.machinery import PathFinder
class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name == {module!r} else super().find_spec(name, path, target)
sys.meta_path[:] = [Finder if each is PathFinder else each for each in sys.meta_path]
from pgworkflows.cli import main
main()
"""
    command = [sys.executable, "-c", program, *words]
    return subprocess.run(command, env=environment(url), capture_output=True, text=True, check=False)


def test_without_an_extra_it_says_what_to_install(story: Story) -> None:
    done = without("click")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "pgworkflows: the command line needs click and rich: pip install 'pgworkflows[cli]'\n"
    done = without("werkzeug", "ui", url=story.url)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Error: pgworkflows.ui needs Werkzeug and Jinja2: pip install 'pgworkflows[ui]'\n"
