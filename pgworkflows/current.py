"""What a step function may know of the call it is in: `current_step()`."""

from __future__ import annotations

from contextvars import ContextVar
from uuid import UUID, uuid5


class CurrentStep:
    """One call of a step function.

    `attempt` counts from 1 over the whole life of the run; a call that its process did not survive does not count.
    `idempotency_key` is the same for every attempt, also after a crash: hand it to third parties that take one.
    `cancelled` turns true once the result is not wanted any more.
    """

    __slots__ = ("_cancelled", "attempt", "run_id", "step_id")

    def __init__(self, run_id: UUID, step_id: str, attempt: int) -> None:
        self.run_id = run_id
        self.step_id = step_id
        self.attempt = attempt
        self._cancelled = False

    @property
    def idempotency_key(self) -> str:
        return str(uuid5(self.run_id, self.step_id))

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    def cancel(self) -> None:
        """Tell the function that its result is not wanted any more."""
        self._cancelled = True


_current: ContextVar[CurrentStep] = ContextVar("pgworkflows_current_step")
set_current = _current.set
reset_current = _current.reset


def current_step() -> CurrentStep:
    """The call of a step function that this code runs in. Raises RuntimeError outside of one."""
    try:
        return _current.get()
    except LookupError:
        raise RuntimeError("current_step() works inside a step function only") from None
