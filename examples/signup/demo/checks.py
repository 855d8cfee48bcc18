"""The judge: what the demo should have brought about, held against what the database and the mailboxes hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from examples.signup.contract import Outcome
from examples.signup.demo.mailserver import BUSY_TIMES, Received
from examples.signup.demo.people import Person
from examples.signup.demo.stage import Stage

LINK, REMINDER, WELCOME = "Please confirm your address", "Your sign-up is still waiting", "Welcome!"

# A person whom the first wait kept waiting until it timed out is due a reminder, even one who was only slow.
SIGN_UPS = """
select s.name, s.email, r.status, r.output #>> '{}' as outcome, r.error ->> 'message' as error,
    (select count(*) from users as u where u.run_id = s.run_id) as users,
    (select u.state from users as u where u.run_id = s.run_id) as state,
    exists (
        select from pgworkflows.steps as st
        where st.run_id = s.run_id and st.step_id = 'await-click'
            and st.status = 'completed' and st.output::text = 'null'
    ) as kept_waiting
from signups as s
join pgworkflows.runs as r on r.id = s.run_id
"""
COUNTS = """
select (select count(*) from signups) as signups,
    (select count(*) from users) as users,
    (select count(*) from pgworkflows.runs) as runs,
    (select count(*) from pgworkflows.events where consumed_at is null) as events_lost
"""


@dataclass(frozen=True)
class Evidence:
    """What is known when all is over. `in_hand`: whose runs the killed worker had in hand."""

    people: Sequence[Person]
    sign_ups: dict[str, Any]
    counts: Any
    mails: Sequence[Received]
    refusals: int
    in_hand: frozenset[str]
    survivor_exit: int | None

    @property
    def copies(self) -> Counter[tuple[str, str]]:
        """How often each mail arrived, by address and subject."""
        return Counter((mail.to, mail.subject) for mail in self.mails)

    @property
    def mailed_again(self) -> int:
        """How many mails arrived a second time."""
        return sum(count - 1 for count in self.copies.values())


def gather(stage: Stage, people: Sequence[Person], in_hand: frozenset[str], survivor_exit: int | None) -> Evidence:
    """Ask the database and the mail server."""
    sign_ups = {row.email: row for row in stage.named(SIGN_UPS)}
    (counts,) = stage.named(COUNTS)
    mail = stage.mail
    return Evidence(people, sign_ups, counts, tuple(mail.received), mail.refusals, in_hand, survivor_exit)


def problems(found: Evidence) -> list[str]:
    """What is wrong, one line each; empty when all is well."""
    return [
        *_totals(found),
        *(line for person in found.people for line in _person(found, person)),
        *(line for person in found.people for line in _mails(found, person)),
        *_copies(found),
    ]


def _totals(found: Evidence) -> Iterator[str]:
    expected = len(found.people)
    for what in ("signups", "users", "runs"):
        count = getattr(found.counts, what)
        if count != expected:
            yield f"there are {count} {what} for {expected} people"
    if found.counts.events_lost:
        yield f"{found.counts.events_lost} clicks were accepted and never reached their run"
    busy = BUSY_TIMES * sum(person.mailbox == "busy" for person in found.people)
    if found.refusals != busy:
        yield f"the mail server should have refused {busy} mails for being busy, and refused {found.refusals}"
    if not found.in_hand:
        yield "the killed worker had nothing in hand: nothing was put to the test"
    if found.survivor_exit != 0:
        yield f"the other worker did not stop gracefully: its exit status was {found.survivor_exit}"


def _person(found: Evidence, person: Person) -> Iterator[str]:
    who, row = f"{person.name} <{person.email}>", found.sign_ups.get(person.email)
    if row is None:
        yield f"{who} signed up, and the application does not know"
        return
    if row.name != person.name:
        yield f"{who} is called {row.name!r} in the database"
    if row.users != 1:
        yield f"{who} should be one user, and is {row.users}"
    if row.status != "completed" or row.outcome != person.outcome:
        yield f"the run of {who} is {row.status} with outcome {row.outcome}, not {person.outcome}: {row.error}"
    if row.state != person.outcome:
        yield f"{who} is {row.state}, and should be {person.outcome}"


def _mails(found: Evidence, person: Person) -> Iterator[str]:
    row = found.sign_ups.get(person.email)
    delivered = person.outcome is not Outcome.UNDELIVERABLE
    due = {
        LINK: delivered,
        REMINDER: delivered and (person.confirms != "mail" or (row is not None and row.kept_waiting)),
        WELCOME: person.outcome is Outcome.ACTIVE,
    }
    for subject, is_due in due.items():
        arrived = found.copies[person.email, subject]
        if is_due and not arrived:
            yield f"the mail {subject!r} was due to {person.name} <{person.email}> and never arrived"
        if arrived and not is_due:
            yield f"the mail {subject!r} was not due to {person.name} <{person.email}> and arrived"


def _copies(found: Evidence) -> Iterator[str]:
    """A step runs at least once. Only the one that its worker was killed in may have run twice, and only once more."""
    again = Counter[str]()
    for (email, subject), count in found.copies.items():
        again[email] += count - 1
        ids = {mail.message_id for mail in found.mails if (mail.to, mail.subject) == (email, subject)}
        if len(ids) > 1:
            yield f"the copies of the mail {subject!r} to {email} bear different Message-IDs"
    for email, count in again.items():
        allowed = 1 if email in found.in_hand else 0
        if count > allowed:
            yield f"{count} mails to {email} arrived again; a worker killed at work explains {allowed}"
