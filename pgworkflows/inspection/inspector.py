"""The inspector: what one wants to know of runs, workers and workflows, in any amount of them."""

from __future__ import annotations

from pgworkflows.inspection.changes import ChangeOperations
from pgworkflows.inspection.finding import FindOperations
from pgworkflows.inspection.overview import OverviewOperations
from pgworkflows.inspection.stuck import StuckOperations
from pgworkflows.inspection.timelines import TimelineOperations


class Inspector(FindOperations, TimelineOperations, OverviewOperations, StuckOperations, ChangeOperations):
    """Looks at the database of a client or an engine, and changes nothing. What it returns are frozen dataclasses;
    times are aware and in UTC; payloads are JSON values, decoded by the client's codecs where these can."""
