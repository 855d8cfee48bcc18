"""The demo: `python -m examples.signup`, which is what `make demo` runs."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import NoReturn

import psycopg

from examples.signup.demo import people as persons
from examples.signup.demo.browser import Browser
from examples.signup.demo.checks import LINK, Evidence, gather, problems
from examples.signup.demo.crowd import Crowd
from examples.signup.demo.inbox import serve_inbox
from examples.signup.demo.mailserver import MailServer
from examples.signup.demo.people import Person
from examples.signup.demo.play import Play
from examples.signup.demo.show import Show, show_for_stdout, table
from examples.signup.demo.stage import Stage, StageError
from pgworkflows import WorkflowEngineError

WHY_TWICE = """the mail server had taken them from the worker that was killed before it could
record that. A step runs at least once; so that a copy can be told from a second mail, both bear the same Message-ID."""
TIMELINES = Path(__file__).parent / "demo" / "timelines.sql"
IN_A_HURRY = {"SIGNUP_REMIND_AFTER": "3 seconds", "SIGNUP_EXPIRE_AFTER": "4 seconds"}
AT_LEISURE = {"SIGNUP_REMIND_AFTER": "2 minutes", "SIGNUP_EXPIRE_AFTER": "10 minutes"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; the exit status: 0, or 1 when its outcome is not what it should be."""
    options = _options(arguments)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # some names need more letters than some terminals have
    for name in [*os.environ]:
        if name.startswith("PG") and not name.startswith("PGWORKFLOWS_"):
            del os.environ[name]  # libpq's settings are for another server than ours
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    try:
        return _run(options, persons.load(options.people, options.seed), show_for_stdout())
    except BrokenPipeError:  # nobody reads on: `make demo | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except (StageError, WorkflowEngineError, psycopg.Error, OSError) as error:
        print(f"The demo FAILED: {type(error).__name__}: {error}", flush=True)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.signup", description="Sign-up by mail, end to end.")
    parser.add_argument("--people", type=_count, help="how many sign up (default: all in people.csv)")
    parser.add_argument("--seed", type=int, default=1, help="draws who comes when (default: 1)")
    parser.add_argument("--serve", action="store_true", help="keep it up for a browser afterwards")
    parser.add_argument("--lose-a-mail", action="store_true", help=argparse.SUPPRESS)  # to see the checks fail
    return parser.parse_args(arguments)


def _count(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 500:
        raise argparse.ArgumentTypeError("give a number from 1 to 500")
    return number


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    """End in order: what was started is stopped on the way out."""
    for each in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


def _run(options: argparse.Namespace, people: Sequence[Person], show: Show) -> int:
    begun_at = time.monotonic()
    mail = MailServer(
        people,
        lambda email, answer: show.note(f"mail to {email}: {answer}"),
        lose=LINK if options.lose_a_mail else None,
    )
    with Stage(mail, show, IN_A_HURRY) as stage:
        crowd = Crowd(people, Browser(stage.url), options.seed)
        mail.on_mail = crowd.get_mail
        play = Play(people, crowd, stage, show)
        play.perform()
        show.close()
        _print_timelines(stage)
        found = gather(stage, people, play.in_hand, play.survivor_exit)
        wrong = problems(found)
        _print_verdict(found, wrong, time.monotonic() - begun_at)
        if options.serve:
            _serve(stage)
    return 1 if wrong else 0


def _print_timelines(stage: Stage) -> None:
    sql = TIMELINES.read_text(encoding="utf-8")
    rows = stage.query(sql)
    print(f"\nThe timeline of each run, as this query prints it:\n\n{sql}")
    print(table([column.name for column in rows.description or ()], rows), flush=True)


def _print_verdict(found: Evidence, wrong: Sequence[str], elapsed_s: float) -> None:
    outcomes = Counter(person.outcome for person in found.people)
    print(f"\n{len(found.people)} people: " + ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items()))
    print(f"{len(found.copies)} mails, and {found.refusals} times a busy mail server said 451, try again later")
    print(
        f"{found.mailed_again} of the mails arrived twice: {WHY_TWICE}" if found.mailed_again else "None arrived twice"
    )
    for line in wrong:
        print(f"WRONG: {line}")
    if wrong:
        print(f"The demo FAILED after {elapsed_s:.1f} s: see the lines marked WRONG", flush=True)
    else:
        print(f"All is as it should be, after {elapsed_s:.1f} s: everybody created once, nothing lost", flush=True)


def _serve(stage: Stage) -> None:
    """Keep everything up until a signal comes."""
    inbox = serve_inbox(stage.mail.received)
    stage.replace_workers(AT_LEISURE)
    print(
        f"\nSign up:  {stage.url}\nEveryone: {stage.url}signups\nMails:    http://127.0.0.1:{inbox.port}/\n"
        f"SQL:      psql '{stage.database_url}'\nReminders go out after 2 minutes. Ctrl-C ends it all.",
        flush=True,
    )
    threading.Event().wait()


if __name__ == "__main__":
    sys.exit(main())
