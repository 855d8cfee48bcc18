"""Chaos in short, and whether its checker notices what it has to: in histories made by hand, and in a broken engine.

The storms take a minute: `make test-chaos`. `make chaos` is the long form: docs/reliability.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from chaos import checker
from chaos.campaign import Conditions, Result, storm
from chaos.checker import check
from chaos.history import (
    Claim,
    Ending,
    EventRow,
    History,
    Leaving,
    Outcome,
    Place,
    Run,
    Schedule,
    Sent,
    StepRow,
    Try,
    Worker,
)
from chaos.ledger import Call
from chaos.plans import Act, Dealer, Plan, Scenario
from chaos.report import report
from chaos.sabotage import LOST_EVENT, NO_FENCE, SKIPPED_CHECKPOINT
from chaos.stories import TICK

NOT_SYNCED = {"fsync": "off"}
SHORT = Conditions(
    seconds=10,
    leases_s=(2.0, 2.0, None),
    clients=2,
    runs_per_s=40,
    fault_every_s=0.5,
    fault_for_all_every_s=8,
    frozen_s=1.5,
    longest_wait_s=1,
    drain_s=90,
    settings=NOT_SYNCED,
)
"""All kinds of runs and of faults, if not many of each."""
CALM = replace(SHORT, seconds=1.5, leases_s=(None, None), runs_per_s=60, only="answer to a claim lost", drain_s=3)
FREEZING = replace(
    SHORT,
    seconds=7,
    leases_s=(2.0, None),
    runs_per_s=4,
    frozen_s=2,
    long_ones=0.9,
    only="worker stopped for longer than its lease",
)
"""Steps that take long, and one worker that loses them and wakes while the other is at them."""


def said(result: Result) -> str:
    return "\n".join(report(result))


@pytest.mark.chaos
@pytest.mark.timeout(240)
def test_a_short_storm_loses_nothing_and_does_nothing_twice() -> None:
    result = storm(20261122, SHORT)
    print(said(result))
    assert not result.violations, said(result)
    assert len(result.history.runs) > 100
    assert len(result.faults) > 5


@pytest.mark.chaos
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("sabotage", "conditions", "rules"),
    [
        (NO_FENCE, FREEZING, {checker.only_who_holds_a_run_writes_to_it}),
        (LOST_EVENT, CALM, {checker.every_accepted_event_is_kept, checker.nothing_is_stuck_and_nothing_is_left}),
        (SKIPPED_CHECKPOINT, CALM, {checker.every_timeline_is_that_of_its_plan}),
    ],
    ids=[NO_FENCE, LOST_EVENT, SKIPPED_CHECKPOINT],
)
def test_a_broken_engine_is_noticed(sabotage: str, conditions: Conditions, rules: set[Callable[..., Any]]) -> None:
    missing = {rule.__name__ for rule in rules}
    for seed in (1, 2, 3):  # the fault must come at a bad moment
        result = storm(seed, replace(conditions, sabotage=sabotage))
        missing -= {violation.rule for violation in result.violations}
        if not missing:
            return
    raise AssertionError(f"{missing} not noticed:\n{said(result)}")


def test_the_same_seed_deals_the_same_runs() -> None:
    first, again, other = (Dealer(seed) for seed in ("1", "1", "2"))
    dealt = [first.deal() for _ in range(200)]
    assert dealt == [again.deal() for _ in range(200)]
    assert dealt != [other.deal() for _ in range(200)]


# Histories made by hand ----------------------------------------------------------------------------------------------

PLAN = Plan(
    "a",
    (
        Act("step"),
        Act("event", event="go", seconds=5.0),
        Act("step", fails=1, attempts=2),
        Act("child", child=Plan("a/3")),
    ),
)
LONE = Plan("b", (Act("step"),), "lone")
FIRST, SECOND = Worker("w1", 1, 0.0, None), Worker("w2", 2, 0.0, None)


def json_of(plan: Plan) -> dict[str, Any]:
    acts = [{**vars(act), "child": None if act.child is None else json_of(act.child)} for act in plan.acts]
    return {"name": plan.name, "workflow": plan.workflow, "retries": plan.retries, "acts": acts}


def run(id: str, plan: Plan, output: Any, **others: Any) -> Run:
    given = {"parent_run_id": None, "parent_step_id": None, "schedule_tick": None} | others
    return Run(id, plan.workflow, "completed", json_of(plan), output, None, created_at=0.0, completed_at=9.0, **given)


def step(run_id: str, position: int, id: str, kind: str, output: Any, **others: Any) -> StepRow:
    given = {"attempts": 1, "wake_at": None, "child_run_id": None} | others
    return StepRow(run_id, position, id, kind, "completed", output, None, started_at=1.0, completed_at=8.0, **given)


def history() -> History:
    """A run of two steps, an event and a child, by one worker; a singleton; a schedule with two ticks."""
    child: list[Any] = []
    output = [{"call": "c0"}, {"n": 1}, {"call": "c2"}, child]
    return History(
        tries=[
            Try(Scenario(PLAN), "accepted", "A", sent=[Sent("go", {"n": 1}, accepted=True)]),
            Try(Scenario(LONE), "accepted", "B"),
            Try(Scenario(replace(LONE, name="c")), "refused"),
        ],
        calls=[
            Call("c0", "A", "0-step", 1, 1, 1.0, 1.1, "ok"),
            Call("c1", "A", "2-step", 1, 1, 3.0, 3.1, "failed"),
            Call("c2", "A", "2-step", 2, 1, 4.0, 4.1, "ok"),
            Call("c3", "B", "0-step", 1, 1, 1.0, 1.1, "ok"),
            *[Call(f"t{n}{k}", f"T{n}", f"{k}-step", 1, 1, 1.0 + k, 1.1 + k, "ok") for n in (1, 2) for k in (0, 1)],
        ],
        runs=[
            run("A", PLAN, output),
            run("A3", Plan("a/3"), child, parent_run_id="A", parent_step_id="3-child"),
            run("B", LONE, [{"call": "c3"}]),
            *[
                replace(
                    run(f"T{n}", TICK, [{"call": f"t{n}0"}, {"call": f"t{n}1"}]),
                    workflow_id="minute-0",
                    schedule_tick=60.0 * n,
                )
                for n in (1, 2)
            ],
        ],
        steps=[
            step("A", 0, "0-step", "run", {"call": "c0"}),
            step("A", 1, "1-event", "wait_for", {"n": 1}, wake_at=6.0),
            step("A", 2, "2-step", "run", {"call": "c2"}, attempts=2),
            step("A", 3, "3-child", "invoke_child_workflow", child, child_run_id="A3"),
            step("B", 0, "0-step", "run", {"call": "c3"}),
            *[step(f"T{n}", k, f"{k}-step", "run", {"call": f"t{n}{k}"}) for n in (1, 2) for k in (0, 1)],
        ],
        events=[EventRow(1, "A", "go", {"n": 1}, 2.0, 2.5, "1-event")],
        workers=[FIRST, SECOND],
        claims=[Claim(run_id, "w1", 0.5) for run_id in ("A", "A3", "B", "T1", "T2")],
        outcomes=[
            Outcome("A", "0-step", "completed", 1, {"call": "c0"}, None, 1.2),
            Outcome("A", "2-step", "retrying", 1, None, {"type": "Broken", "message": "c1"}, 3.2),
            Outcome("A", "2-step", "completed", 2, {"call": "c2"}, None, 4.2),
            Outcome("B", "0-step", "completed", 1, {"call": "c3"}, None, 1.2),
        ],
        endings=[Ending("A", "completed", output, 9.0), Ending("B", "completed", [{"call": "c3"}], 9.0)],
        schedules=[Schedule("minute-0", 0.0, 130.0)],
        exit_statuses=[0, 0],
    )


def test_a_history_as_it_has_to_be_has_no_violation() -> None:
    assert check(history()) == []


def changed(rows: Any, index: int, **values: Any) -> list[Any]:
    return [*rows[:index], replace(rows[index], **values), *rows[index + 1 :]]


def taken_over(told: History, *, lost_at: float | None) -> History:
    """The first step was called again, by the second worker; the first one's is said to have died then."""
    told.workers = [replace(FIRST, gone_at=lost_at), SECOND]
    told.claims = [*told.claims, Claim("A", "w2", 2.0)]
    again = Call("c0x", "A", "0-step", 1, 2, 2.1, 2.2, "ok")
    told.calls = [*told.calls[:1], again, *[replace(each, pid=2) for each in told.calls[1:3]], *told.calls[3:]]
    return told


def recorded(told: History, call: str, at: float) -> History:
    """What was stored of the first step is this call's."""
    told.outcomes = changed(told.outcomes, 0, output={"call": call}, at=at)
    told.steps = changed(told.steps, 0, output={"call": call})
    told.runs = changed(told.runs, 0, output=[{"call": call}, *told.runs[0].output[1:]])
    return told


def test_a_step_whose_worker_died_before_its_checkpoint_may_be_called_again() -> None:
    assert check(recorded(taken_over(history(), lost_at=1.5), "c0x", 2.3)) == []


def test_a_step_that_was_given_back_at_the_end_of_its_workers_grace_may_be_called_again() -> None:
    told = recorded(taken_over(history(), lost_at=None), "c0x", 2.3)
    told.leavings = [Leaving(1, 1.9)]
    assert check(told) == []


def test_a_step_that_was_stored_and_is_called_again_is_noticed() -> None:
    assert rules_broken(taken_over(history(), lost_at=1.5)) == {"no_completed_step_is_executed_again"}


def test_a_step_that_is_called_again_although_its_worker_lives_is_noticed() -> None:
    told = recorded(taken_over(history(), lost_at=None), "c0x", 2.3)
    assert rules_broken(told) == {"no_completed_step_is_executed_again"}


def test_a_stale_workers_write_is_noticed() -> None:
    told = recorded(taken_over(history(), lost_at=1.5), "c0", 2.3)
    assert rules_broken(told) == {"only_who_holds_a_run_writes_to_it"}


def test_a_frozen_worker_may_begin_a_call_until_it_learns_of_its_death_and_no_longer() -> None:
    told = recorded(taken_over(history(), lost_at=1.5), "c0x", 2.3)
    told.calls = [*told.calls, Call("late", "A", "0-step", 1, 1, 5.0, 5.1, "ok")]
    assert check(told) == []
    told.workers = [*told.workers, Worker("w1b", 1, 3.0, None)]
    assert rules_broken(told) == {"only_who_holds_a_run_executes_it"}


def rules_broken(told: History) -> set[str]:
    return {violation.rule for violation in check(told)}


def spoiled(**changes: Callable[[History], Any]) -> Callable[[History], None]:
    def spoil(told: History) -> None:
        for field, value in changes.items():
            setattr(told, field, value(told))

    return spoil


@pytest.mark.parametrize(
    ("rule", "spoil"),
    [
        ("every_accepted_run_is_there_once", spoiled(tries=lambda h: changed(h.tries, 2, start="accepted"))),
        ("every_accepted_run_is_there_once", spoiled(tries=lambda h: changed(h.tries, 2, start="unknown"))),
        ("every_accepted_run_is_there_once", spoiled(tries=lambda h: h.tries[:1])),
        ("every_accepted_run_is_there_once", spoiled(tries=lambda h: changed(h.tries, 0, start="taken back"))),
        ("every_run_ends_as_its_model_says", spoiled(runs=lambda h: changed(h.runs, 0, status="cancelled"))),
        (
            "every_run_ends_as_its_model_says",
            spoiled(runs=lambda h: changed(h.runs, 0, status="failed", error={"type": "KeyError"})),
        ),
        ("every_run_ends_as_its_model_says", spoiled(tries=lambda h: changed(h.tries, 0, cancels=["accepted"]))),
        ("every_timeline_is_that_of_its_plan", spoiled(runs=lambda h: changed(h.runs, 2, output=[{"call": "c9"}]))),
        ("every_timeline_is_that_of_its_plan", spoiled(steps=lambda h: h.steps[1:])),
        ("every_timeline_is_that_of_its_plan", spoiled(steps=lambda h: changed(h.steps, 2, attempts=1))),
        (
            "no_completed_step_is_executed_again",
            spoiled(calls=lambda h: [*h.calls, Call("c4", "B", "0-step", 1, 1, 2.0, 2.1, "ok")]),
        ),
        (
            "no_completed_step_is_executed_again",  # an attempt whose failure was never stored
            spoiled(calls=lambda h: [*h.calls, Call("c4", "A", "2-step", 1, 1, 3.5, 3.6, "failed")]),
        ),
        ("only_who_holds_a_run_executes_it", spoiled(calls=lambda h: changed(h.calls, 3, pid=3))),
        ("only_who_holds_a_run_writes_to_it", spoiled(claims=lambda h: [*h.claims, Claim("B", "w2", 1.15)])),
        (
            "no_two_overlapping_executions_are_both_recorded",
            spoiled(calls=lambda h: changed(h.calls, 1, ended_at=4.05)),
        ),
        ("what_is_completed_stays", spoiled(outcomes=lambda h: [*h.outcomes, replace(h.outcomes[3], at=5.0)])),
        ("what_is_completed_stays", spoiled(endings=lambda h: [*h.endings, replace(h.endings[1], status="failed")])),
        ("every_accepted_event_is_kept", spoiled(events=lambda h: [])),
        (
            "every_accepted_event_is_kept",
            spoiled(events=lambda h: [*h.events, replace(h.events[0], id=2, step_id=None)]),
        ),
        ("every_accepted_event_is_kept", spoiled(tries=lambda h: changed(h.tries, 0, sent=[]))),
        (
            "every_event_is_consumed_once_in_order_and_none_lost",  # it timed out although the event had come
            spoiled(
                steps=lambda h: changed(h.steps, 1, output=None),
                runs=lambda h: changed(h.runs, 0, output=[h.runs[0].output[0], None, *h.runs[0].output[2:]]),
                events=lambda h: changed(h.events, 0, step_id=None),
            ),
        ),
        (
            "every_event_is_consumed_once_in_order_and_none_lost",
            spoiled(events=lambda h: changed(h.events, 0, step_id="2-step")),
        ),
        ("children_and_parents_agree", spoiled(steps=lambda h: changed(h.steps, 3, child_run_id="B"))),
        ("children_and_parents_agree", spoiled(runs=lambda h: changed(h.runs, 1, output=["other"]))),
        ("every_tick_has_one_run", spoiled(schedules=lambda h: [Schedule("minute-0", 0.0, 190.0)])),
        ("every_tick_has_one_run", spoiled(schedules=lambda h: [Schedule("minute-0", 0.0, 110.0)])),
        (
            "one_singleton_at_a_time",
            spoiled(
                runs=lambda h: [*h.runs, replace(h.runs[2], id="C", input=json_of(replace(LONE, name="c")))],
                tries=lambda h: changed(h.tries, 2, start="accepted"),
                steps=lambda h: [*h.steps, replace(h.steps[4], run_id="C", output={"call": "c4"})],
                calls=lambda h: [*h.calls, Call("c4", "C", "0-step", 1, 1, 2.0, 2.1, "ok")],
                claims=lambda h: [*h.claims, Claim("C", "w1", 1.5)],
                endings=lambda h: [*h.endings, replace(h.endings[1], run_id="C", at=10.0)],
            ),
        ),
        (
            "nothing_is_stuck_and_nothing_is_left",
            spoiled(runs=lambda h: changed(h.runs, 2, status="waiting", completed_at=None)),
        ),
        ("nothing_is_stuck_and_nothing_is_left", spoiled(places=lambda h: [Place("B", "waiting", None, None)])),
        ("nothing_is_stuck_and_nothing_is_left", spoiled(registered_pids=lambda h: [1])),
        ("nothing_is_stuck_and_nothing_is_left", spoiled(exit_statuses=lambda h: [0, -11])),
        (
            "nothing_is_stuck_and_nothing_is_left",
            spoiled(events=lambda h: [*h.events, replace(h.events[0], id=2, run_id="gone", step_id=None)]),
        ),
    ],
)
def test_a_spoiled_history_breaks_its_rule(rule: str, spoil: Callable[[History], None]) -> None:
    told = history()
    spoil(told)
    assert rule in rules_broken(told)


def test_every_rule_is_broken_by_some_history() -> None:
    [parameters] = [mark.args[1] for mark in test_a_spoiled_history_breaks_its_rule.pytestmark]  # type: ignore[attr-defined]
    assert {rule for rule, _ in parameters} == {rule.__name__ for rule in checker.RULES}
