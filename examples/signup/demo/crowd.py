"""The crowd: people who sign up, get mail, read it after a while, and follow the link in it, or do not."""

from __future__ import annotations

import heapq
import random
import time
from collections.abc import Iterable
from queue import Empty, SimpleQueue

from examples.signup.demo.browser import Browser
from examples.signup.demo.checks import LINK, REMINDER
from examples.signup.demo.mailserver import Received
from examples.signup.demo.people import Person

READING_S = (0.2, 0.8)
IMPATIENT = 4  # every fourth person presses the button twice
MOVES = {"mail": LINK, "reminder": REMINDER, "never": None}


class Crowd:
    """Everybody, played by one thread; `get_mail` may be called by another."""

    def __init__(self, people: Iterable[Person], browser: Browser, seed: int) -> None:
        self._moved_by = {person.email: MOVES[person.confirms] for person in people}
        self._browser = browser
        self._chance = random.Random(seed)
        self._post: SimpleQueue[Received] = SimpleQueue()
        self._plans: list[tuple[float, str]] = []
        self._moved: set[str] = set()
        self.signed_up = 0

    @property
    def done(self) -> bool:
        """Whether nobody is about to click."""
        return self._post.empty() and not self._plans

    def sign_up(self, person: Person) -> None:
        """One person fills in the form."""
        self.signed_up += 1
        self._browser.sign_up(person, presses=2 if self.signed_up % IMPATIENT == 0 else 1)

    def get_mail(self, mail: Received) -> None:
        """A mail has come."""
        self._post.put(mail)

    def act(self) -> None:
        """Read what has come, and follow the links whose time it is."""
        while (mail := self._next_mail()) is not None:
            if mail.link and mail.subject == self._moved_by.get(mail.to) and mail.to not in self._moved:
                self._moved.add(mail.to)
                heapq.heappush(self._plans, (time.monotonic() + self._chance.uniform(*READING_S), mail.link))
        while self._plans and self._plans[0][0] <= time.monotonic():
            self._browser.follow(heapq.heappop(self._plans)[1])

    def _next_mail(self) -> Received | None:
        try:
            return self._post.get_nowait()
        except Empty:
            return None
