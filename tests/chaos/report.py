"""What a storm was made of, and how fast everything went on after each fault."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from .campaign import Result
from .faults import Fault
from .history import History

SHOWN = 20
LOGGED = {
    "workers declared dead by others": r"worker \S+ is dead",
    "workers that woke after their death, dropped their runs and registered anew": r"was declared dead, drops",
    "times that stale writes were refused": r"runs that are not this worker's any more",
    "outages told by those who write outcomes": r"writing the outcomes of steps failed",
    "outages told by those who claim": r"claiming runs failed",
    "outages told by those who listen": r"listening for new work failed",
}
"""What the workers' logs tell."""


def report(result: Result) -> Iterator[str]:
    """The lines to print."""
    history = result.history
    yield f"seed {result.seed}: {result.stormed_s:.0f} s of storm, quiet after {result.drained_s:.1f} s more"
    yield ""
    statuses = Counter(run.status for run in history.runs)
    told = ", ".join(f"{number:,} {status}" for status, number in statuses.most_common())
    yield f"runs: {len(history.runs):,} ({told})"
    started = Counter(each.start for each in history.tries)
    yield "starts: " + ", ".join(f"{number:,} {how}" for how, number in started.most_common())
    yield f"children: {sum(run.parent_run_id is not None for run in history.runs):,}"
    yield f"ticks: {sum(run.schedule_tick is not None for run in history.runs):,}"
    consumed = sum(event.step_id is not None for event in history.events)
    yield f"events: {len(history.events):,}, of which {consumed:,} consumed"
    yield f"calls of step functions: {len(history.calls):,}, of which {_unended(history):,} died with their process"
    yield f"calls made again, for their outcome was not stored before: {_repeated(history):,}"
    yield f"claims: {len(history.claims):,}; runs taken over: {len(history.taken_over):,}"
    yield "clients were told: " + ", ".join(f"{what} {number:,}" for what, number in sorted(result.told.items()))
    for what, pattern in LOGGED.items():
        yield f"{what}: {len(re.findall(pattern, result.said)):,}"
    yield ""
    yield from _table(result)
    yield from _slowest(result)
    yield ""
    yield f"faults: {len(result.faults):,}; violations: {len(result.violations):,}"
    rules = Counter(violation.rule for violation in result.violations)
    for rule, number in rules.most_common():
        yield f"  {number:,} × {rule}"
    for violation in result.violations[:SHOWN]:
        yield f"  {violation.rule}: {violation.case}"
    if result.violations:
        yield f"to see it again: make chaos SEED={result.seed} SECONDS={result.conditions.seconds:g}"


def _unended(history: History) -> int:
    return sum(call.ended_at is None for call in history.calls)


def _repeated(history: History) -> int:
    """Calls with the number of an attempt that another call had had."""
    return len(history.calls) - len({(call.run_id, call.step_id, call.attempt) for call in history.calls})


def _table(result: Result) -> Iterator[str]:
    """One line for each kind of fault, with recovery times as median / longest, in seconds."""
    recoveries = Recoveries(result.history)
    kinds: defaultdict[str, list[Fault]] = defaultdict(list)
    for fault in result.faults:
        kinds[fault.kind].append(fault)
    yield "| fault | times | hit | runs in flight | next completed step, s | all in flight went on, s |"
    yield "|---|---:|---:|---:|---:|---:|"
    for kind, faults in sorted(kinds.items(), key=lambda item: -len(item[1])):
        hit, in_flight = sum(fault.hit for fault in faults), sum(len(fault.in_flight) for fault in faults)
        next_step = _spread([recoveries.next_step(fault) for fault in faults])
        went_on = _spread([recoveries.all_went_on(fault) for fault in faults])
        yield f"| {kind} | {len(faults)} | {hit} | {in_flight} | {next_step} | {went_on} |"


def _slowest(result: Result) -> Iterator[str]:
    """What became of the run that went on last of all after a fault, in seconds since then."""
    recoveries = Recoveries(result.history)
    waits = [
        (recoveries.went_on(fault, run_id), fault, run_id) for fault in result.faults for run_id in fault.in_flight
    ]
    known = [(wait, fault.at, fault.kind, run_id) for wait, fault, run_id in waits if wait is not None]
    if known:
        wait, at, kind, run_id = max(known)
        claims = [f"{claim.at - at:+.2f}" for claim in result.history.claims if claim.run_id == run_id]
        losses = [f"{lost_at - at:+.2f}" for lost, lost_at in result.history.taken_over if lost == run_id]
        meanwhile = [f"{each.at - at:+.2f} {each.kind}" for each in result.faults if 0 < each.at - at < wait]
        yield f"the slowest: run {run_id}, {wait:.2f} s after: {kind}; claimed at {', '.join(claims)}"
        yield f"  taken over at {', '.join(losses) or '-'}; meanwhile: {', '.join(meanwhile)}"


def _spread(seconds: Sequence[float | None]) -> str:
    known = sorted(each for each in seconds if each is not None)
    return f"{known[len(known) // 2]:.2f} / {known[-1]:.2f}" if known else "-"


class Recoveries:
    """How long after a fault something was stored again."""

    def __init__(self, history: History) -> None:
        self._completed = sorted(each.at for each in history.outcomes if each.status == "completed")
        self._progress: defaultdict[str, list[float]] = defaultdict(list)
        stored: list[Any] = [*history.outcomes, *history.endings]
        for each in sorted(stored, key=lambda row: row.at):
            self._progress[each.run_id].append(each.at)

    def next_step(self, fault: Fault) -> float | None:
        """Seconds until the next completed step of any run."""
        return _wait(self._completed, fault.at)

    def went_on(self, fault: Fault, run_id: str) -> float | None:
        """Seconds until a run was written to."""
        return _wait(self._progress[run_id], fault.at)

    def all_went_on(self, fault: Fault) -> float | None:
        """Seconds until the last of the runs that workers had in hand was written to; None if there were none."""
        waits = [self.went_on(fault, run_id) for run_id in fault.in_flight]
        return max((wait for wait in waits if wait is not None), default=None)


def _wait(times: list[float], since: float) -> float | None:
    number = bisect_right(times, since)
    return times[number] - since if number < len(times) else None
