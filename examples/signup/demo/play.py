"""The play: people sign up and click, a worker is killed at work, and everything is brought to its end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from uuid import UUID

from examples.signup.demo.crowd import Crowd
from examples.signup.demo.people import Person
from examples.signup.demo.processes import Process
from examples.signup.demo.show import Bar, Show
from examples.signup.demo.stage import Stage, StageError

END_WITHIN_S = 60
BETWEEN_PEOPLE_S = 0.08
AT_THE_KILLING = 3  # so many sign up while the mail server keeps silent
LOOK_EVERY_S = 0.1

STATUSES = "select r.status, count(*) from signups as s join pgworkflows.runs as r on r.id = s.run_id group by r.status"
HOLDERS = """
select w.pid, s.email
from pgworkflows.queue as q
join pgworkflows.workers as w on w.id = q.worker_id
join signups as s on s.run_id = q.run_id
"""


class Play:
    """One performance on a stage."""

    def __init__(self, people: Sequence[Person], crowd: Crowd, stage: Stage, show: Show) -> None:
        self._people = people
        self._crowd = crowd
        self._stage = stage
        self._show = show
        self._begun_at = time.monotonic()
        self._looked_at = 0.0
        self.in_hand: frozenset[str] = frozenset()
        self.survivor_exit: int | None = None

    def perform(self) -> None:
        """From the first sign-up to the last mail. Leaves whose runs the killed worker had `in_hand`, and how the
        other one ended."""
        half = len(self._people) // 2
        self._sign_up(self._people[:half])
        with self._stage.mail.silence():
            self._sign_up(self._people[half : half + AT_THE_KILLING])
            victim = self._worker_at_work()
            victim.kill()
            self._take_stock(victim)
        self._sign_up(self._people[half + AT_THE_KILLING :])
        self._until_all_is_settled()
        self.survivor_exit = next(worker for worker in self._stage.workers if worker is not victim).stop()

    def _sign_up(self, people: Sequence[Person]) -> None:
        for person in people:
            self._crowd.sign_up(person)
            self._live_for(BETWEEN_PEOPLE_S)

    def _worker_at_work(self) -> Process:
        """A worker whose mail the server has taken without having said so."""
        deadline = time.monotonic() + END_WITHIN_S
        while time.monotonic() < deadline:
            unanswered = set(self._stage.mail.unanswered)
            pids = {pid for pid, email in self._stage.ask(HOLDERS) if email in unanswered}
            for worker in self._stage.workers:
                if worker.pid in pids:
                    return worker
            self._live_for(0.02)
        raise StageError(f"no worker sent a mail within {END_WITHIN_S} s: there is none to kill at work")

    def _take_stock(self, victim: Process) -> None:
        # The claims of the dead stand until another worker has noticed, which takes longer than this.
        self.in_hand = frozenset(email for pid, email in self._stage.ask(HOLDERS) if pid == victim.pid)
        runs = "1 run" if len(self.in_hand) == 1 else f"{len(self.in_hand)} runs"
        self._show.note(
            f"*** {victim.name} is killed (SIGKILL) in the midst of an SMTP conversation, {runs} in hand ***"
        )

    def _until_all_is_settled(self) -> None:
        deadline = time.monotonic() + END_WITHIN_S
        while not self._settled() and time.monotonic() < deadline:  # when it is late, the checks tell what is missing
            self._live_for(LOOK_EVERY_S)
        self._look()

    def _settled(self) -> bool:
        counts = dict(self._stage.ask(STATUSES))
        finished = sum(counts.get(status, 0) for status in ("completed", "failed", "cancelled"))
        return finished >= len(self._people) and self._crowd.done

    def _live_for(self, seconds: float) -> None:
        """Let the crowd act, and show how things stand, for a while."""
        until = time.monotonic() + seconds
        while True:
            self._crowd.act()
            if time.monotonic() - self._looked_at >= LOOK_EVERY_S:
                self._look()
            left_s = until - time.monotonic()
            if left_s <= 0:
                return
            time.sleep(min(0.02, left_s))

    def _look(self) -> None:
        self._looked_at = time.monotonic()
        counts = dict(self._stage.ask(STATUSES))
        states = ", ".join(
            f"{counts[each]} {each}"
            for each in ("pending", "running", "waiting", "completed", "failed")
            if each in counts
        )
        elapsed_s = self._looked_at - self._begun_at
        summary = (
            f"{elapsed_s:5.1f} s: {self._crowd.signed_up} signed up ({states}), {len(self._stage.mail.received)} mails"
        )
        self._show.update(summary, self._bars())

    def _bars(self) -> list[Bar]:
        if not self._show.room:
            return []
        rows = self._stage.ask(f"select run_id, name from signups order by created_at desc limit {self._show.room}")
        return [self._bar(run_id, name) for run_id, name in reversed(rows)]

    def _bar(self, run_id: UUID, name: str) -> Bar:
        progress = self._stage.client.check_progress(run_id)
        step = str(progress.output) if progress.status.finished else progress.current_step_id
        return Bar(name, progress.completion_percentage, progress.status, step or "")
