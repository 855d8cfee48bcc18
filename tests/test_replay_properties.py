"""The laws of replay, over random workflows that are crashed, paused and woken before and after every decision.

What must hold for one run alone is in laws.py; here, runs are compared with undisturbed ones of the same workflow.
PGWORKFLOWS_TEST_EXAMPLES says how many workflows each of the large tests plays.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, event, given, note, settings
from hypothesis import strategies as st
from plays import Disturbance, Play, ending, without_traceback
from random_workflows import Ask, Block, Deed, Delay, Mail, Pass, Run, Work, deeds, mails, trees

from pgworkflows.runs import RunStatus

EXAMPLES = int(os.environ.get("PGWORKFLOWS_TEST_EXAMPLES", "500"))
MANY = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
HALF = settings(MANY, max_examples=max(1, EXAMPLES // 2))
FEWER = settings(MANY, max_examples=max(1, EXAMPLES // 6))

retries = st.sampled_from((0, 0, 1, 2))
plans = st.dictionaries(st.integers(0, 40), st.sampled_from(Disturbance), max_size=12)
crashes = st.sets(st.integers(0, 40), max_size=15).map(lambda points: dict.fromkeys(points, Disturbance.CRASH))


@MANY
@given(trees(), mails, retries, plans | crashes)
def test_a_disturbed_run_ends_as_an_undisturbed_one(
    tree: Block, mail: list[Mail], retries: int, plan: dict[int, Disturbance]
) -> None:
    calm = Play(tree, mail=mail, retries=retries).run()
    note(f"undisturbed: {ending(calm)}")
    disturbed = Play(tree, mail=mail, retries=retries, plan=plan).run()
    assert ending(disturbed) == ending(calm)
    assert dict.fromkeys(disturbed.calls) == dict.fromkeys(calm.calls)
    assert disturbed.lines_missed() == []


@FEWER
@given(trees(), mails, retries)
def test_no_single_crash_before_or_after_any_decision_changes_how_a_run_ends(
    tree: Block, mail: list[Mail], retries: int
) -> None:
    calm = Play(tree, mail=mail, retries=retries).run()
    for point in range(calm.points):
        crashed = Play(tree, mail=mail, retries=retries, plan={point: Disturbance.CRASH}).run()
        assert ending(crashed) == ending(calm), f"crashed at point {point} of {calm.points}"
        assert len(crashed.calls) <= len(calm.calls) + 1


@FEWER
@given(trees(), mails)
def test_without_crashes_every_line_is_logged_once(tree: Block, mail: list[Mail]) -> None:
    play = Play(tree, mail=mail).run()
    assert play.lines == play.told.tellings[-1].path


@FEWER
@given(trees(), mails, retries)
def test_the_history_of_a_finished_run_replays_to_the_same_end(tree: Block, mail: list[Mail], retries: int) -> None:
    play = Play(tree, mail=mail, retries=retries).run()
    database, saw = play.database, repr(play.told.tellings[-1].saw)
    if not database.status.finished:
        return
    entry = play.replayed()
    assert (entry.steps, entry.events, entry.output) == ((), (), database.output)
    assert without_traceback(entry.error) == without_traceback(database.error)
    assert repr(play.told.tellings[-1].saw) == saw


# Another handler than the one that made the history ------------------------------------------------------------------


def changed(tree: Block, at: int, how: str) -> Block:
    """`tree` with another node at one place of its top level."""
    head, tail = tree[:at], tree[at + 1 :]
    return {
        "cut": head,
        "left out": head + tail,
        "another kind": (*head, Delay(1) if isinstance(tree[at], Run) else Run(), *tail),
        "another first": (*head, Run(), *tree[at:]),
    }[how]


@HALF
@given(
    trees(),
    mails,
    st.integers(1, 12),
    st.integers(0, 5),
    st.sampled_from(("cut", "left out", "another kind", "another first")),
)
def test_a_handler_that_does_not_do_what_it_did_writes_nothing_and_once_mended_goes_on(
    tree: Block, mail: list[Mail], claims: int, at: int, how: str
) -> None:
    calm = Play(tree, mail=mail).run()
    play = Play(tree, mail=mail)
    claimed = play.next_claim()
    for _ in range(claims):
        if claimed is not None:
            play.work(claimed, flushes=1)
            claimed = play.next_claim()
    if claimed is None or at >= len(tree):
        return
    before = play.database.history
    play.told.tree = changed(tree, at, how)
    entry = play.replayed(claimed)
    telling = play.told.tellings[-1]
    if telling.asked[: len(before)] == [(step.step_id, step.kind) for step in before]:
        assert entry.error is None or entry.error.type != "NonDeterminismError"
        return  # it differs only in what was not reached yet, or not at all
    event("refused")
    assert entry.error is not None
    # Or it stumbled over something else first: an error of its own, or a result that is not what it expects.
    assert telling.raised or entry.error.type in ("NonDeterminismError", "SerializationError")
    assert (entry.action, entry.steps, entry.events) == ("fail", (), ())
    play.flush(entry)
    assert play.database.status is RunStatus.FAILED
    assert play.database.history == before
    play.told.tree = tree
    play.database.retry()
    assert ending(play.run()) == ending(calm)


# Time passes, and anybody does anything ------------------------------------------------------------------------------


@MANY
@given(trees(), deeds(least=3, most=25), retries)
def test_whatever_anybody_does_and_however_long_it_takes_the_laws_hold(
    tree: Block, deeds: list[Deed], retries: int
) -> None:
    play = Play(tree, retries=retries)
    database = play.database
    for deed in deeds:
        before = database.steps.copy()
        match deed:
            case Pass(seconds):
                play.pass_time(seconds)
            case Mail(after_s, name, data, key):
                play.pass_time(after_s)
                database.trigger_event(name, data, key)
            case Ask(what):
                play.ask(what)
            case Work(flushes, pass_s, meanwhile):
                claimed = database.claim()
                if claimed is not None:
                    play.work(claimed, flushes=flushes, pass_s=pass_s, meanwhile=meanwhile)
        play.watch.rows(before)
    play.run()
