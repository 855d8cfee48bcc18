"""Errors go through pickle and copy: to other processes, and into loggers that copy."""

from __future__ import annotations

import copy
import pickle
from uuid import uuid4

import pytest

import pgworkflows
from pgworkflows import (
    ChildWorkflowFailedError,
    InvalidInputError,
    RunStatus,
    StepFailedError,
    StepTimeoutError,
    WorkflowEngineError,
    WorkflowRunNotFoundError,
)

RUN_ID = uuid4()
ERRORS = [
    WorkflowRunNotFoundError("gone", run_id=RUN_ID),
    InvalidInputError("wrong", issues=[{"loc": ("a",)}], workflow_id="w"),
    StepFailedError("no", step_id="a", error_type="ValueError", traceback="…", run_id=RUN_ID),
    StepTimeoutError("late", step_id="a", error_type="StepTimeoutError"),
    ChildWorkflowFailedError("no", step_id="a", child_run_id=RUN_ID, status=RunStatus.FAILED, error={"type": "X"}),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_is_the_same_after_pickle_and_copy(error: WorkflowEngineError) -> None:
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(other) is type(error)
        assert vars(other) == vars(error)
        assert str(other) == str(error)
        assert other.args == error.args


def test_every_error_is_under_one_root() -> None:
    errors = [getattr(pgworkflows, name) for name in pgworkflows.__all__ if name.endswith("Error")]
    assert len(errors) == 15
    assert all(issubclass(error, WorkflowEngineError) for error in errors)
