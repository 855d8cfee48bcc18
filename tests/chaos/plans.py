"""What is to happen to each run of a storm, dealt out by seed: its acts, how it is started, what clients do to it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

NEVER = 99
"""More failing calls than any policy allows."""


@dataclass(frozen=True)
class Act:
    """One step of a run. `do` is step, event, delay, until, poll, pause or child.

    A step or poll takes `ms` for each call, and its first `fails` calls raise, or find nothing. A step has `attempts`
    calls, and its failure is `caught` by the handler or not; a child's failure is, always. Waits last `seconds`.
    """

    do: str
    ms: int = 0
    fails: int = 0
    attempts: int = 1
    caught: bool = False
    event: str = ""
    seconds: float | None = None
    child: Plan | None = None


@dataclass(frozen=True)
class Plan:
    """The input of a run: its name, which no other has, and its acts in order."""

    name: str
    acts: tuple[Act, ...] = ()
    workflow: str = "tale"
    retries: int = 0

    def ids(self) -> Iterator[tuple[str, Act]]:
        """The acts with the ids of their steps."""
        for number, act in enumerate(self.acts):
            yield f"{number}-{act.do}", act


@dataclass(frozen=True)
class Errand:
    """What a client does to a run `after_s` seconds after its start: send, cancel, pause, or nurse (resume it whenever
    it is paused; with `revive`, retry it whenever it has failed or was cancelled), until it has ended."""

    what: str
    after_s: float = 0.0
    event: str = ""
    key: str | None = None
    copies: int = 1
    revive: bool = False


@dataclass(frozen=True)
class Scenario:
    """A run to be: its plan, how it is started (plain, in bulk, borrowed, or rolled back), and errands."""

    plan: Plan
    how: str = "plain"
    keyed: bool = True
    delay_s: float | None = None
    priority: int = 0
    errands: tuple[Errand, ...] = ()


@dataclass
class Dealer:
    """Deals scenarios, the same for the same seed. `long_ones` is how many of them are runs of long steps."""

    seed: str
    longest_wait_s: float = 4.0
    long_ones: float = 0.02
    _count: int = 0
    _dice: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._dice = random.Random(self.seed)

    def deal(self) -> Scenario:
        """The next scenario."""
        dice = self._dice
        plan = self._plan(dice.choices(("tale", "lone"), (97, 3))[0])
        if plan.workflow == "lone":
            return Scenario(plan)
        errands = [*self._mail(plan), *self._steering(plan)]
        how = dice.choices(("plain", "borrowed", "rolled back"), (85, 12, 3))[0]
        return Scenario(
            plan,
            how,
            keyed=dice.random() < 0.8,
            delay_s=dice.uniform(0.1, self.longest_wait_s) if dice.random() < 0.05 else None,
            priority=dice.choice((0, 0, 0, 0, 100, -100, 5)),
            errands=tuple(sorted(errands, key=lambda errand: errand.after_s)),
        )

    def deal_bulk(self) -> list[Scenario]:
        """Several short runs, to be started by one call."""
        return [
            Scenario(replace(self._plan("tale"), acts=(self._step(), self._step())), "bulk")
            for _ in range(self._dice.randint(5, 40))
        ]

    def _name(self) -> str:
        self._count += 1
        return f"{self.seed}-{self._count}"

    def _plan(self, workflow: str) -> Plan:
        dice = self._dice
        name = self._name()
        if workflow == "lone":
            return Plan(name, (self._step(), self._step()), workflow)
        if dice.random() < self.long_ones:
            # Long enough for a worker to lose it in the middle of a step, and to wake while another is at that step.
            return Plan(name, tuple(Act("step", ms=dice.randint(1000, 2500)) for _ in range(3)))
        acts = [self._act(name, number) for number in range(dice.choice((1, 2, 2, 3, 3, 4, 6)))]
        retries = 0
        if dice.random() < 0.06:
            retries = dice.choice((0, 1, 1, 2))
            acts.append(Act("step", ms=dice.randint(0, 20), fails=dice.choice((1, 1, 2, NEVER))))
        if dice.random() < 0.01:
            acts.append(Act("step", ms=int(1000 * dice.uniform(0.5, 0.6 * self.longest_wait_s))))
        return Plan(name, tuple(acts), workflow, retries)

    def _step(self) -> Act:
        return Act("step", ms=self._dice.choice((0, 0, 1, 5, 20, 60)))

    def _act(self, name: str, number: int) -> Act:
        dice = self._dice
        wait_s = dice.uniform(0.05, self.longest_wait_s)
        kinds = ("step", "retried", "caught", "event", "timed event", "delay", "until", "poll", "pause", "child")
        match dice.choices(kinds, (60, 8, 5, 7, 4, 3, 1, 2, 2, 6))[0]:
            case "retried":
                fails = dice.choice((1, 2))
                return replace(self._step(), fails=fails, attempts=fails + 1)
            case "caught":
                return replace(self._step(), fails=NEVER, attempts=dice.choice((1, 2)), caught=True)
            case "event":
                return Act("event", event=dice.choice(("apple", "pear")))
            case "timed event":
                # Other names: it would take what is meant for one that has no timeout.
                return Act("event", event=dice.choice(("plum", "fig")), seconds=max(0.2, wait_s))
            case "delay":
                return Act("delay", seconds=wait_s)
            case "until":
                return Act("until", seconds=wait_s)
            case "poll":
                return Act("poll", fails=dice.choice((0, 1, 2)))
            case "pause":
                return Act("pause")
            case "child":
                return Act("child", child=self._child(f"{name}/{number}"))
            case _:
                return self._step()

    def _child(self, name: str, depth: int = 1) -> Plan:
        dice = self._dice
        acts = [self._step() for _ in range(dice.randint(1, 3))]
        if dice.random() < 0.2:
            acts.append(Act("delay", seconds=dice.uniform(0.05, self.longest_wait_s / 2)))
        if depth < 2 and dice.random() < 0.3:
            acts.append(Act("child", child=self._child(f"{name}/x", depth + 1)))
        if dice.random() < 0.2:
            acts.append(Act("step", fails=NEVER))
        return Plan(name, tuple(acts), retries=dice.choice((0, 0, 0, 1)))

    def _mail(self, plan: Plan) -> Iterator[Errand]:
        """An event for each wait, at some time early or late, sometimes twice; those without a deadline get theirs for
        sure. And sometimes one too many."""
        dice = self._dice
        waits = [act for act in plan.acts if act.do == "event"]
        for number, act in enumerate(waits):
            if act.seconds is None or dice.random() < 0.8:
                key = f"{plan.name}:{number}" if act.seconds is None or dice.random() < 0.7 else None
                copies = dice.choice((1, 1, 2, 3)) if key else 1
                yield Errand("send", dice.choice((0.0, 0.0, 0.2, 1.0, 1.0)) * self._wait_s(), act.event, key, copies)
        if dice.random() < 0.05:
            yield Errand("send", dice.random(), dice.choice(("apple", "fig", "kiwi")), f"{plan.name}:more")

    def _steering(self, plan: Plan) -> Iterator[Errand]:
        dice = self._dice
        cancels, pauses, revives = dice.random() < 0.04, dice.random() < 0.05, dice.random() < 0.5
        if cancels:
            yield Errand("cancel", dice.random() * self._wait_s())
        if pauses:
            yield Errand("pause", dice.random() * self._wait_s())
        doomed = any(act.fails and not act.caught and act.attempts <= act.fails for act in plan.acts)
        hopeless = any(act.fails == NEVER and not act.caught for act in plan.acts)
        # What is sent to a cancelled run is refused, and it would wait for it in vain.
        waits = any(act.do == "event" and act.seconds is None for act in plan.acts)
        revive = (doomed or cancels) and not hopeless and not (cancels and waits) and revives
        if pauses or revive or any(act.do == "pause" for act in plan.acts):
            yield Errand("nurse", 0.3, revive=revive)

    def _wait_s(self) -> float:
        return self._dice.uniform(0.0, self.longest_wait_s)
