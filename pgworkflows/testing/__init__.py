"""A kit for tests: workflows driven in the test's own thread, on a real database, with a clock that can be moved.

The fixture `workflows` comes with the package, as a plugin of pytest's.
"""

from pgworkflows.testing.clock import make_clock_movable
from pgworkflows.testing.histories import export_run
from pgworkflows.testing.inline import delete_runs, inline
from pgworkflows.testing.replay_check import check_replay
from pgworkflows.testing.run import Run
from pgworkflows.testing.workflows import Workflows

__all__ = ["Run", "Workflows", "check_replay", "delete_runs", "export_run", "inline", "make_clock_movable"]
