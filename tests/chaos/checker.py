"""The proof: what a storm's history says that must not be. A pure function; each rule is a sentence of the guarantees.

A run ends as its model says, which is computed from its plan and what clients were told; a call of a step function is
*rightful* if its process held the run's latest claim when it began.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

from .history import Claim, EventRow, History, Outcome, Run, StepRow, Try, Worker
from .ledger import Call
from .plans import Act, Plan
from .stories import CAUGHT, TICK

KINDS = {
    "step": "run",
    "event": "wait_for",
    "until": "wait_until",
    "delay": "delay",
    "poll": "poll",
    "pause": "pause",
    "child": "invoke_child_workflow",
}
LEARNS_S = 1.0
"""How long after its process has registered anew a call may still begin whose run was lost."""
MINUTE_S = 60
FINISHED = ("completed", "failed", "cancelled")


class Violation(NamedTuple):
    """What must not be: the rule that is broken, by the name of its function, and the case."""

    rule: str
    case: str


Found = Iterator[str]
"""The cases in which a rule is broken."""


def check(history: History) -> list[Violation]:
    """All violations."""
    facts = _Facts(history)
    return [Violation(rule.__name__, case) for rule in RULES for case in rule(facts)]


@dataclass(frozen=True)
class End:
    """How a run ends by its model: completed, or failed at a step."""

    status: str
    step_id: str | None = None


def end_of(plan: Plan, *, revived: bool) -> End:
    """How a run of this plan ends if nobody cancels it."""
    for step_id, act in plan.ids():
        executions = plan.retries + 1
        if act.do == "step" and not act.caught and not revived and act.fails >= act.attempts * executions:
            return End("failed", step_id)
    return End("completed")


def plan_from(value: Any) -> Plan:
    """The plan that a run's input holds."""
    acts = (Act(**{**act, "child": plan_from(act["child"]) if act["child"] else None}) for act in value["acts"])
    return Plan(value["name"], tuple(acts), value["workflow"], value["retries"])


class _Facts:
    """The history with its indexes."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.runs = {run.id: run for run in history.runs}
        self.tries = {each.scenario.plan.name: each for each in history.tries}
        self.calls = {call.id: call for call in history.calls}
        self.steps = _grouped(history.steps, lambda step: step.run_id)
        self.events = _grouped(history.events, lambda event: event.run_id)
        self.calls_of = _grouped(history.calls, lambda call: (call.run_id, call.step_id))
        self.outcomes_of = _grouped(history.outcomes, lambda outcome: (outcome.run_id, outcome.step_id))
        self.endings_of = _grouped(history.endings, lambda ending: ending.run_id)
        self.workers = {worker.worker_id: worker for worker in history.workers}
        self._claims = _grouped(history.claims, lambda claim: claim.run_id)
        self._claim_of: dict[str, Claim | None] = {}

    def plan(self, run: Run) -> Plan:
        return TICK if _ticks(run) else plan_from(run.input)

    def root(self, run: Run) -> Run:
        while run.parent_run_id is not None and run.parent_run_id in self.runs:
            run = self.runs[run.parent_run_id]
        return run

    def try_of(self, run: Run) -> Try | None:
        """The try that started the run, or the family it is of."""
        root = self.root(run)
        return self.tries.get(root.input["name"])

    def claim_at(self, run_id: str, at: float) -> Claim | None:
        """The run's latest claim at a time."""
        claims = self._claims.get(run_id, [])
        number = bisect_right(claims, at, key=lambda claim: claim.at)
        return claims[number - 1] if number else None

    def claim_of(self, call: Call) -> Claim | None:
        """The claim under which a call was made: the latest of its process."""
        if call.id not in self._claim_of:
            found = [
                claim
                for claim in self._claims.get(call.run_id, [])
                if claim.at <= call.began_at and self._pid(claim) == call.pid
            ]
            self._claim_of[call.id] = found[-1] if found else None
        return self._claim_of[call.id]

    def is_rightful(self, call: Call) -> bool:
        claim = self.claim_of(call)
        return claim is not None and claim is self.claim_at(call.run_id, call.began_at)

    def _pid(self, claim: Claim) -> int | None:
        worker = self.workers.get(claim.worker_id)
        return None if worker is None else worker.pid

    def was_lost(self, claim: Claim, by: float) -> bool:
        """Whether by then the worker of a claim had died for its peers, had signed off, or had had to give it back."""
        worker = self.workers[claim.worker_id]
        return (worker.gone_at is not None and worker.gone_at <= by) or any(
            pid == worker.pid and at <= by for pid, at in self._given_back
        )

    @cached_property
    def _given_back(self) -> list[tuple[int, float]]:
        return [(leaving.pid, leaving.gives_back_at) for leaving in self.history.leavings]

    def successor(self, worker: Worker) -> Worker | None:
        """The same process, registered anew."""
        later = [each for each in self.workers.values() if each.pid == worker.pid and each.began_at > worker.began_at]
        return min(later, key=lambda each: each.began_at, default=None)


def _grouped(rows: Any, key: Callable[[Any], Any]) -> dict[Any, list[Any]]:
    found: defaultdict[Any, list[Any]] = defaultdict(list)
    for row in rows:
        found[key(row)].append(row)
    return dict(found)


def _ticks(run: Run) -> bool:
    """Whether it is a run of a schedule."""
    return run.workflow_id.startswith("minute-")


def call_named(outcome: Outcome) -> str | None:
    """The call that a stored outcome says it is of."""
    if outcome.status == "completed" and isinstance(outcome.output, dict):
        found = outcome.output.get("data", outcome.output)
        return found.get("call") if isinstance(found, dict) else None
    if outcome.status in ("failed", "retrying") and outcome.error and outcome.error.get("type") == "Broken":
        return str(outcome.error["message"])
    return None


# The rules -----------------------------------------------------------------------------------------------------------


def every_accepted_run_is_there_once(facts: _Facts) -> Found:
    """Every accepted run is there, once, and no other."""
    names = Counter(run.input["name"] for run in facts.runs.values() if run.parent_run_id is None and not _ticks(run))
    for each in facts.history.tries:
        name = each.scenario.plan.name
        least, most = {"accepted": (1, 1), "unknown": (0, 1)}.get(each.start, (0, 0))
        if each.start == "unknown" and each.scenario.keyed:
            yield f"the start of {name} was never answered"
        if not least <= names[name] <= most:
            yield f"{names[name]} runs of {name}, whose start was {each.start}"
        if each.run_id is not None and each.run_id not in facts.runs:
            yield f"run {each.run_id} of {name} was accepted, and is not there"
    for name in names:
        if name not in facts.tries:
            yield f"nobody has started {name}"


def every_run_ends_as_its_model_says(facts: _Facts) -> Found:
    """Every run ends as its model says."""
    for run in facts.runs.values():
        if run.status not in FINISHED:
            continue  # told by another rule
        ends = {*_ends(facts, run)}
        error = run.error or {}
        if run.status == "failed" and error.get("type") != "Broken":
            yield f"run {run.id} failed with {error}"
        elif End(run.status, error.get("step_id") if run.status == "failed" else None) not in ends:
            yield f"run {run.id} is {run.status} ({error}), its model: {ends}"


def _ends(facts: _Facts, run: Run) -> Iterator[End]:
    asked = facts.try_of(run)
    cancels = [] if asked is None else asked.cancels
    revived = asked is not None and any(said != "refused" for said in asked.retries)
    if any(said != "refused" for said in cancels):
        # A child may have ended before its parent was cancelled.
        yield from [End("cancelled")] if not revived or run.parent_run_id else []
        if "accepted" in cancels and not revived and run.parent_run_id is None:
            return
    yield end_of(facts.plan(run), revived=revived and run.parent_run_id is None)


def every_timeline_is_that_of_its_plan(facts: _Facts) -> Found:
    """The timeline and the output are those of the plan."""
    for run in facts.runs.values():
        steps = facts.steps.get(run.id, [])
        ids = list(facts.plan(run).ids())
        shown = [(step.step_id, step.kind) for step in steps]
        if shown != [(step_id, KINDS[act.do]) for step_id, act in ids[: len(steps)]]:
            yield f"run {run.id} has the steps {shown}"
            continue
        for step, (_, act) in zip(steps, ids, strict=False):
            wrong = _wrong_with(facts, run, step, act)
            if wrong:
                yield f"step {step.step_id} of run {run.id} {wrong}"
        if run.status == "completed":
            if len(steps) != len(ids):
                yield f"run {run.id} is completed with {len(steps)} of {len(ids)} steps"
            seen = [CAUGHT if step.status == "failed" else _result(step) for step in steps]
            if run.output != seen:
                yield f"run {run.id} has seen {run.output}, and stored is {seen}"


def _result(step: StepRow) -> Any:
    return step.output["data"] if step.kind == "poll" and step.output else step.output


def _wrong_with(facts: _Facts, run: Run, step: StepRow, act: Act) -> str | None:
    if run.status == "completed" and step.status != "completed":
        fails = act.caught if act.do == "step" else act.do == "child"
        if step.status != "failed" or not fails:
            return f"is {step.status} although the run is completed"
    if step.status == "failed" and act.do == "step" and act.caught:
        asked = facts.try_of(run)
        again = asked is not None and bool(asked.retries)
        if step.attempts != act.attempts and not (again and step.attempts > act.attempts):
            return f"failed after {step.attempts} attempts instead of {act.attempts}"
    if step.status == "completed" and act.do in ("step", "poll"):
        call = facts.calls.get(str((_result(step) or {}).get("call")))
        if call is None or (call.run_id, call.step_id, call.outcome) != (run.id, step.step_id, "ok"):
            return f"has a result that no call of it returned: {step.output}"
        if (step.attempts, call.attempt) != (act.fails + 1, act.fails + 1):
            return f"took {step.attempts} attempts (call: {call.attempt}) instead of {act.fails + 1}"
    if step.status == "completed" and act.do in ("delay", "until"):
        if step.wake_at is None or step.completed_at is None or step.started_at is None:
            return "has no times"
        if act.do == "delay" and step.wake_at - step.started_at < (act.seconds or 0) - 0.001:
            return f"was to last {act.seconds} s, not {step.wake_at - step.started_at} s"
        if step.completed_at < step.wake_at:
            return f"ended {step.wake_at - step.completed_at} s too early"
    return None


def no_completed_step_is_executed_again(facts: _Facts) -> Found:
    """No completed step is executed again."""
    for (run_id, step_id), calls in facts.calls_of.items():
        stored = next(
            (each.at for each in facts.outcomes_of.get((run_id, step_id), []) if each.status == "completed"), None
        )
        rightful = [call for call in calls if facts.is_rightful(call)]
        for call in rightful:
            if stored is not None and call.began_at > stored:
                yield f"step {step_id} of run {run_id}: {call} began after {stored}"
        for former in calls:
            claim = facts.claim_of(former)
            if former.ended_at is None or claim is None:
                continue
            for call in rightful:
                if call.began_at < former.ended_at or (former.outcome != "ok" and call.attempt > former.attempt):
                    continue
                latter = facts.claim_of(call)
                assert latter is not None
                if latter is claim or not facts.was_lost(claim, latter.at):
                    yield f"step {step_id} of run {run_id}: {former} was followed by {call} without a reason"


def only_who_holds_a_run_executes_it(facts: _Facts) -> Found:
    """Only who holds a run executes its steps, or held it and has not learned of the loss."""
    for call in facts.calls.values():
        if facts.is_rightful(call):
            continue
        claim = facts.claim_of(call)
        if claim is None:
            yield f"{call} by a process that has never claimed the run"
            continue
        successor = facts.successor(facts.workers[claim.worker_id])
        if not facts.was_lost(claim, call.began_at):
            yield f"{call} although the run had gone to another, whom nothing entitled to it"
        elif successor is not None and call.began_at > successor.began_at + LEARNS_S:
            yield f"{call} although its process knew that it had lost the run"


def only_who_holds_a_run_writes_to_it(facts: _Facts) -> Found:
    """Only who holds a run writes to it."""
    for outcomes in facts.outcomes_of.values():
        for call, outcome in _recorded(facts, outcomes):
            claim = facts.claim_of(call)
            if claim is None or claim is not facts.claim_at(outcome.run_id, outcome.at):
                yield f"{call} was stored at {outcome.at}, when another had the run"


def no_two_overlapping_executions_are_both_recorded(facts: _Facts) -> Found:
    """No two overlapping executions are both recorded."""
    for outcomes in facts.outcomes_of.values():
        former: Call | None = None
        for call, outcome in _recorded(facts, outcomes):
            if call.ended_at is None:
                yield f"{call} has not ended, and its outcome is stored: {outcome}"
            elif former is not None and call.began_at < (former.ended_at or 0):
                yield f"{former} and {call}"
            former = call


def _recorded(facts: _Facts, outcomes: list[Outcome]) -> Iterator[tuple[Call, Outcome]]:
    """The calls whose outcome was stored, with the first time that it was."""
    seen: set[str] = set()
    for outcome in outcomes:
        named = call_named(outcome)
        if named is not None and named in facts.calls and named not in seen:
            seen.add(named)
            yield facts.calls[named], outcome


def what_is_completed_stays(facts: _Facts) -> Found:
    """What is completed stays as it is."""
    for (run_id, step_id), outcomes in facts.outcomes_of.items():
        done = [number for number, outcome in enumerate(outcomes) if outcome.status == "completed"]
        if done and done[0] != len(outcomes) - 1:
            yield f"step {step_id} of run {run_id} was written again: {outcomes[done[0] + 1]}"
    for run_id, endings in facts.endings_of.items():
        done = [number for number, ending in enumerate(endings) if ending.status == "completed"]
        if done and done[0] != len(endings) - 1:
            yield f"run {run_id} was written again: {endings[done[0] + 1]}"


def every_accepted_event_is_kept(facts: _Facts) -> Found:
    """Every accepted event is kept, once, and no other."""
    for each in facts.history.tries:
        if each.run_id is None:
            continue
        kept = Counter(str(event.data) for event in facts.events.get(each.run_id, []))
        for sent in each.sent:
            found = kept.pop(str(sent.data), 0)
            least = 1 if sent.accepted else 0
            most = 0 if sent.refused and not sent.accepted else 1
            if not least <= found <= most:
                yield f"{found} of {sent} to run {each.run_id}"
        if kept:
            yield f"run {each.run_id} has events that nobody sent: {kept}"


def every_event_is_consumed_once_in_order_and_none_lost(facts: _Facts) -> Found:
    """Every event is consumed at most once, in order, and none is lost."""
    for run in facts.runs.values():
        acts = dict(facts.plan(run).ids())
        waits = [step for step in facts.steps.get(run.id, []) if step.kind == "wait_for" and step.step_id in acts]
        mailbox = list(facts.events.get(run.id, []))
        for step in waits:
            name = acts[step.step_id].event
            first = next((event for event in mailbox if event.name == name), None)
            if step.status != "completed":
                continue
            if step.output is None:
                wrong = _wrong_with_timeout(step, acts[step.step_id], first)
                if wrong:
                    yield f"step {step.step_id} of run {run.id} {wrong}"
                continue
            if first is None or (first.data, first.step_id) != (step.output, step.step_id):
                yield f"step {step.step_id} of run {run.id} took {step.output}, first is {first}"
            if first is not None:
                mailbox.remove(first)
        for event in mailbox:
            if event.step_id is not None:
                yield f"{event} was consumed, and no wait has it"


def _wrong_with_timeout(step: StepRow, act: Act, first: EventRow | None) -> str | None:
    if act.seconds is None:
        return "has no timeout, and timed out"
    if step.wake_at is None or step.completed_at is None or step.completed_at < step.wake_at:
        return f"timed out before its time: {step}"
    if first is not None and first.received_at <= step.wake_at:
        return f"timed out at {step.wake_at} although {first} had come"
    return None


def children_and_parents_agree(facts: _Facts) -> Found:
    """Children and parents agree."""
    for run in facts.runs.values():
        if run.parent_run_id is None:
            continue
        steps = [step for step in facts.steps.get(run.parent_run_id, []) if step.step_id == run.parent_step_id]
        if run.parent_run_id not in facts.runs or [step.child_run_id for step in steps] != [run.id]:
            yield f"the parent of run {run.id} does not know it: {steps}"
    for step in facts.history.steps:
        if step.kind != "invoke_child_workflow":
            continue
        child = facts.runs.get(step.child_run_id or "")
        if child is None:
            yield f"step {step.step_id} of run {step.run_id} has no child: {step}"
        elif step.status == "completed" and (child.status, child.output) != ("completed", step.output):
            yield f"step {step.step_id} of run {step.run_id} has {step.output}, its child {child}"
        elif step.status == "failed" and child.status not in ("failed", "cancelled"):
            yield f"step {step.step_id} of run {step.run_id} failed, its child is {child.status}"
        elif step.status in ("waiting", "retrying"):
            yield f"step {step.step_id} of run {step.run_id} still waits for its child {child}"


def every_tick_has_one_run(facts: _Facts) -> Found:
    """One run per tick."""
    runs = _grouped(filter(_ticks, facts.runs.values()), lambda run: run.workflow_id)
    for schedule in facts.history.schedules:
        begin = int(schedule.since // MINUTE_S + 1) * MINUTE_S
        ticks = Counter(float(tick) for tick in range(begin, int(schedule.dealt_with) + 1, MINUTE_S))
        started = Counter(run.schedule_tick for run in runs.get(schedule.workflow_id, []))
        if ticks != started:
            yield f"{schedule}: missing {ticks - started}, too many {started - ticks}"


def one_singleton_at_a_time(facts: _Facts) -> Found:
    """At most one unfinished run of a singleton."""
    times: list[tuple[float, float, str]] = []
    for run in facts.runs.values():
        if run.workflow_id == "lone":
            calls = [
                call for step in facts.steps.get(run.id, []) for call in facts.calls_of.get((run.id, step.step_id), [])
            ]
            began = [call.began_at for call in calls if facts.is_rightful(call)]
            if began and run.completed_at is not None:
                times.append((min(began), max(ending.at for ending in facts.endings_of[run.id]), run.id))
    times.sort()
    for (_, ended, former), (begins, _, latter) in pairwise(times):
        if begins < ended:
            yield f"run {latter} began before run {former} had ended"


def nothing_is_stuck_and_nothing_is_left(facts: _Facts) -> Found:
    """Nothing is stuck, nothing is an orphan."""
    places = {place.run_id: place for place in facts.history.places}
    for run in facts.runs.values():
        if run.status not in FINISHED:
            yield f"run {run.id} is {run.status}, its place: {places.get(run.id)}"
    for place in places.values():
        if place.run_id not in facts.runs or facts.runs[place.run_id].status in FINISHED:
            yield f"a place in the queue that is nobody's: {place}"
    for kind, rows in (("steps", facts.steps), ("events", facts.events)):
        for run_id in rows:
            if run_id not in facts.runs:
                yield f"{kind} of a run that is not there: {run_id}"
    for pid in facts.history.registered_pids:
        yield f"process {pid} has ended, and its worker is on the list of the living"
    for status in facts.history.exit_statuses:
        if status != 0:
            yield f"a worker that was told to end did so with exit status {status}"


RULES: tuple[Callable[[_Facts], Found], ...] = (
    every_accepted_run_is_there_once,
    every_run_ends_as_its_model_says,
    every_timeline_is_that_of_its_plan,
    no_completed_step_is_executed_again,
    only_who_holds_a_run_executes_it,
    only_who_holds_a_run_writes_to_it,
    no_two_overlapping_executions_are_both_recorded,
    what_is_completed_stays,
    every_accepted_event_is_kept,
    every_event_is_consumed_once_in_order_and_none_lost,
    children_and_parents_agree,
    every_tick_has_one_run,
    one_singleton_at_a_time,
    nothing_is_stuck_and_nothing_is_left,
)
