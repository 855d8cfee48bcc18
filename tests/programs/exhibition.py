"""The workflows of the dashboard's exhibits, as an application has them: an engine for the command line."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from exhibits import WORKFLOWS

from pgworkflows import WorkflowEngine

engine = WorkflowEngine(workflows=WORKFLOWS)
