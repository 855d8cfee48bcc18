"""Looking at runs, workers and workflows: what the command line and the dashboard show."""

from pgworkflows.inspection.activity import Activity, Bucket, StepActivity, Totals, WorkflowActivity
from pgworkflows.inspection.changes import Change, ChangeKind, ChangeMark, Changes
from pgworkflows.inspection.finding import Count, FoundRuns
from pgworkflows.inspection.inspector import Inspector
from pgworkflows.inspection.overview import DeclaredWorkflow, Overview, WorkerInfo
from pgworkflows.inspection.stuck import Stuck, StuckReason
from pgworkflows.inspection.timelines import ChildSummary, Entry, Holder, MailboxEvent, Remedy, Timeline, Wait

__all__ = [
    "Activity",
    "Bucket",
    "Change",
    "ChangeKind",
    "ChangeMark",
    "Changes",
    "ChildSummary",
    "Count",
    "DeclaredWorkflow",
    "Entry",
    "FoundRuns",
    "Holder",
    "Inspector",
    "MailboxEvent",
    "Overview",
    "Remedy",
    "StepActivity",
    "Stuck",
    "StuckReason",
    "Timeline",
    "Totals",
    "Wait",
    "WorkerInfo",
    "WorkflowActivity",
]
