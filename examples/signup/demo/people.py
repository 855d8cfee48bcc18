"""The people who sign up, as `people.csv` has them."""

from __future__ import annotations

import csv
import random
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Literal, cast

from examples.signup.contract import Outcome

TABLE = Path(__file__).with_name("people.csv")

Mailbox = Literal["ok", "busy", "unknown"]
Confirms = Literal["mail", "reminder", "never"]


@dataclass(frozen=True)
class Person:
    """Somebody who signs up.

    The server of their `mailbox` takes what comes, is busy at first (451, twice), or knows no such address (550).
    They follow the link of the first mail, or only that of the reminder, or never.
    """

    name: str
    email: str
    mailbox: Mailbox
    confirms: Confirms

    @property
    def outcome(self) -> Outcome:
        """What should become of their sign-up."""
        if self.mailbox == "unknown":
            return Outcome.UNDELIVERABLE
        return Outcome.EXPIRED if self.confirms == "never" else Outcome.ACTIVE


def load(count: int | None = None, seed: int = 1) -> list[Person]:
    """The first `count` of the table in an order of chance; more than it has come again under further addresses."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    wanted = len(rows) if count is None else count
    people = [_person(row, number // len(rows)) for number, row in enumerate(islice(cycle(rows), wanted))]
    random.Random(seed).shuffle(people)
    return people


def _person(row: dict[str, str], again: int) -> Person:
    name, email = row["name"], row["email"]
    if again:
        name, email = f"{name} {again + 1}", email.replace("@", f".{again + 1}@")
    return Person(name, email, cast("Mailbox", row["mailbox"]), cast("Confirms", row["confirms"]))
