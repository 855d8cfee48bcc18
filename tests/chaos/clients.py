"""Clients of a storm: threads that start runs, do errands for them, and note what they were told."""

from __future__ import annotations

import heapq
import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import psycopg

from pgworkflows import (
    ConfigurationError,
    InvalidStatusError,
    RunStatus,
    WorkflowClient,
    WorkflowRun,
    WorkflowRunInProgressError,
)

from .history import Sent, Try
from .plans import Dealer, Errand, Scenario

BROKEN = (ConfigurationError, psycopg.Error)
"""What a client meets when its connection breaks: the call may have been carried out or not."""
NURSE_EVERY_S = 0.5
AGAIN_S = 0.2


class Client:
    """One client. It starts runs, at most `crowd` of its own being unfinished, until it is told to `finish`; then it
    does what errands are left, and ends when there are none."""

    def __init__(self, url: str, dealer: Dealer, *, runs_per_s: float, crowd: int) -> None:
        self.tries: list[Try] = []
        self.told: Counter[str] = Counter()
        self.failure: BaseException | None = None
        self._url = url
        self._dealer = dealer
        self._dice = random.Random(f"{dealer.seed} steering")
        self._pause_s = 1 / runs_per_s
        self._crowd = crowd
        self._todo: list[tuple[float, int, Callable[[], float | None]]] = []
        self._numbers = itertools.count()
        self._finishing = threading.Event()
        self._given_up = threading.Event()
        self._thread = threading.Thread(target=self._run_guarded, name=f"client {dealer.seed}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def finish(self) -> None:
        """Start no more runs."""
        self._finishing.set()

    def join(self, timeout_s: float) -> bool:
        """Whether it has ended within the time; if not, it gives up."""
        self._thread.join(max(0.0, timeout_s))
        ended = not self._thread.is_alive()
        self._given_up.set()
        self._thread.join(30)
        return ended

    def _run_guarded(self) -> None:
        try:
            with WorkflowClient(self._url) as self._client:
                self._run()
        except BaseException as failure:  # told by whoever joins
            self.failure = failure

    def _run(self) -> None:
        next_start = time.monotonic()
        while not self._given_up.is_set() and (self._todo or not self._finishing.is_set()):
            now = time.monotonic()
            if self._todo and self._todo[0][0] <= now:
                _, _, errand = heapq.heappop(self._todo)
                again_s = errand()
                if again_s is not None:
                    self._later(again_s, errand)
            elif now >= next_start and not self._finishing.is_set():
                next_start = max(next_start + self._pause_s * self._start_some(), now - 1)
            else:
                until = min([next_start if not self._finishing.is_set() else now + 1, *[t[0] for t in self._todo[:1]]])
                self._given_up.wait(min(0.05, max(0.001, until - now)))

    def _later(self, after_s: float, errand: Callable[[], float | None]) -> None:
        heapq.heappush(self._todo, (time.monotonic() + after_s, next(self._numbers), errand))

    def _ask(self, call: Callable[[], Any]) -> tuple[str, Any]:
        """Make a call: accepted and what it returned, refused, or unknown."""
        try:
            answer = call()
        except BROKEN as error:
            self.told[type(error).__name__] += 1
            return "unknown", None
        except (InvalidStatusError, WorkflowRunInProgressError) as error:
            self.told[type(error).__name__] += 1
            return "refused", None
        self.told["accepted"] += 1
        return "accepted", answer

    # Starting ---------------------------------------------------------------------------------------------------------

    def _start_some(self) -> int:
        """Start a run, or several at once; how many."""
        if len(self._todo) > self._crowd:
            return 1
        if self._dice.random() < 0.05:
            scenarios = self._dealer.deal_bulk()
            tries = [Try(scenario) for scenario in scenarios]
            self.tries += tries
            if (again_s := self._start_bulk(tries)) is not None:
                self._later(again_s, lambda: self._start_bulk(tries))
            return len(tries)
        each = Try(self._dealer.deal())
        self.tries.append(each)
        if (again_s := self._start(each)) is not None:
            self._later(again_s, lambda: self._start(each))
        return 1

    def _start(self, each: Try) -> float | None:
        scenario = each.scenario
        match scenario.how:
            case "borrowed":
                said, run = self._ask(lambda: self._start_in_transaction(scenario, commit=True))
            case "rolled back":
                said, _ = self._ask(lambda: self._start_in_transaction(scenario, commit=False))
                each.start = "taken back"
                return None
            case _:
                said, run = self._ask(lambda: self._start_run(scenario))
        each.start = said
        if said == "unknown" and scenario.keyed:
            return AGAIN_S
        if said == "accepted":
            self._started(each, run)
        return None

    def _start_run(self, scenario: Scenario, connection: Any = None) -> WorkflowRun:
        plan = scenario.plan
        return self._client.start_workflow(
            plan.workflow,
            _json(plan),
            idempotency_key=plan.name if scenario.keyed else None,
            retries=plan.retries,
            priority=scenario.priority,
            delay=scenario.delay_s,
            connection=connection,
        )

    def _start_in_transaction(self, scenario: Scenario, *, commit: bool) -> WorkflowRun:
        with psycopg.connect(self._url) as connection:
            run = self._start_run(scenario, connection)
            if not commit:
                connection.rollback()
        return run

    def _start_bulk(self, tries: list[Try]) -> float | None:
        plans = [each.scenario.plan for each in tries]
        said, runs = self._ask(
            lambda: self._client.start_workflows(
                "tale", [_json(plan) for plan in plans], idempotency_keys=[plan.name for plan in plans]
            )
        )
        for number, each in enumerate(tries):
            each.start = said
            if said == "accepted":
                self._started(each, runs[number])
        return AGAIN_S if said == "unknown" else None

    def _started(self, each: Try, run: WorkflowRun) -> None:
        each.run_id = str(run.id)
        for errand in each.scenario.errands:
            self._later(errand.after_s, self._errand(each, errand))

    # Errands ----------------------------------------------------------------------------------------------------------

    def _errand(self, each: Try, errand: Errand) -> Callable[[], float | None]:
        """What does it; it returns when to do it again, if that is to be."""
        match errand.what:
            case "send":
                sent = Sent(errand.event, {"sent": errand.key or f"{each.scenario.plan.name}:{next(self._numbers)}?"})
                each.sent.append(sent)
                left = [errand.copies]
                return lambda: self._send(each, errand, sent, left)
            case "cancel":
                return lambda: self._cancel(each)
            case "pause":
                return lambda: self._pause(each)
            case _:
                return lambda: self._nurse(each, errand)

    def _send(self, each: Try, errand: Errand, sent: Sent, left: list[int]) -> float | None:
        said, _ = self._ask(
            lambda: self._client.trigger_event(str(each.run_id), errand.event, sent.data, idempotency_key=errand.key)
        )
        sent.accepted |= said == "accepted"
        sent.refused |= said == "refused"
        if said == "unknown":
            return AGAIN_S if errand.key else None
        left[0] -= 1
        return self._dice.random() if left[0] > 0 else None

    def _cancel(self, each: Try) -> float | None:
        said, _ = self._ask(lambda: self._client.cancel_workflow(str(each.run_id)))
        each.cancels.append(said)
        return AGAIN_S if said == "unknown" else None

    def _pause(self, each: Try) -> float | None:
        said, _ = self._ask(lambda: self._client.pause_workflow(str(each.run_id)))
        return AGAIN_S if said == "unknown" else None

    def _nurse(self, each: Try, errand: Errand) -> float | None:
        said, run = self._ask(lambda: self._client.get_run(str(each.run_id)))
        if said != "accepted":
            return AGAIN_S
        match run.status:
            case RunStatus.PAUSED:
                self._ask(lambda: self._client.resume_workflow(run.id))
            case RunStatus.FAILED | RunStatus.CANCELLED if errand.revive:
                said, _ = self._ask(lambda: self._client.retry_workflow(run.id))
                each.retries.append(said)
            case RunStatus.COMPLETED | RunStatus.FAILED | RunStatus.CANCELLED:
                return None
            case _:
                pass
        return NURSE_EVERY_S


def _json(plan: Any) -> Any:
    """A plan as the input of a run, written by a client that knows no schema."""
    if hasattr(plan, "acts"):
        return {
            "name": plan.name,
            "workflow": plan.workflow,
            "retries": plan.retries,
            "acts": [_json(act) for act in plan.acts],
        }
    return {**vars(plan), "child": None if plan.child is None else _json(plan.child)}
