"""`make bench-peers`: the same work through DBOS, Absurd and pg-workflows, beside ours and the server's own limit.

Every scenario goes through every system in turn, round after round, each in a process and a database of its own on one
embedded server with fsync on. Prints a table and JSON lines, and writes the medians into docs/benchmarks.md unless it
was told to measure less than everything.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psycopg
from psycopg import sql

from bench import scenarios
from bench.__main__ import DURABLE
from bench.figures import Figures
from bench.peers import report
from bench.peers.environments import ROOT, NotInstalledError
from bench.peers.report import LIMITS, Measured
from bench.peers.systems import OURS, PEERS, SCENARIOS, System
from pgworkflows import EmbeddedPostgres
from pgworkflows.embedded.binaries import find_binaries


class FailedError(Exception):
    """A system did not do a scenario."""


def main() -> None:
    options = arguments()
    chosen = [OURS, *(system for system in PEERS if not options.only or system.peer in options.only)]
    with EmbeddedPostgres(settings=DURABLE) as server:
        measured = Measured(chosen, options.rounds, version_of(server), os.getloadavg()[0])
        installed = list(install(chosen, measured))
        measure(server, OURS, "throughput", quick=True)  # warm-up
        for number in range(options.rounds):
            for scenario in SCENARIOS:
                progress(f"round {number + 1} of {options.rounds}: {scenario}")
                if scenario == "throughput":
                    measure_limits(server, measured, seconds=2 if options.quick else 3)
                for system in installed:
                    measure_into(measured, server, system, scenario, quick=options.quick)
    print(report.screen(measured))
    print("\n".join(["", *report.ratios(measured), ""]))
    for (name, scenario), rounds in measured.figures.items():
        for figures in rounds:
            rounded = {figure: round(value, 2) for figure, value in figures.items()}
            print(json.dumps({"system": name, "scenario": scenario, **rounded}))
    for (name, scenario), reason in measured.failures.items():
        print(json.dumps({"system": name, "scenario": scenario, "failed": reason}))
    if options.write:
        report.write(measured)
        progress(f"written: {report.PAGE.relative_to(ROOT)}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round of a quarter of the work; writes no page")
    parser.add_argument("--rounds", type=int, help="3, or 1 with --quick")
    parser.add_argument("--only", nargs="+", choices=sorted({peer.peer for peer in PEERS if peer.peer}), default=[])
    options = parser.parse_args()
    options.write = not options.quick and not options.only and options.rounds is None
    options.rounds = options.rounds or (1 if options.quick else 3)
    return options


def version_of(server: EmbeddedPostgres) -> str:
    with psycopg.connect(server.url) as conn:
        return conn.info.parameter_status("server_version") or "of unknown version"


def install(systems: Sequence[System], measured: Measured) -> Iterator[System]:
    """The systems that can be run; why the others cannot is noted."""
    for system in systems:
        try:
            system.install()
        except NotInstalledError as error:
            for scenario in system.amounts:
                measured.failures[system.name, scenario] = str(error)
        else:
            yield system


def measure_into(measured: Measured, server: EmbeddedPostgres, system: System, scenario: str, *, quick: bool) -> None:
    """One round of one scenario. A system that fails once is not given the scenario again."""
    key = system.name, scenario
    if scenario in system.amounts and key not in measured.failures:
        try:
            measured.figures.setdefault(key, []).append(measure(server, system, scenario, quick=quick))
        except FailedError as error:
            measured.figures.pop(key)
            measured.failures[key] = str(error)
            progress(f"{system.name}, {scenario}: {error}")


def measure(server: EmbeddedPostgres, system: System, scenario: str, *, quick: bool) -> Figures:
    """Let the system's script do the scenario. Raises FailedError."""
    binaries = find_binaries()
    path = os.environ["PATH"] if binaries is None else f"{binaries.directory}{os.pathsep}{os.environ['PATH']}"
    within_s = 25 if quick else 45
    command = [*system.command, scenario, str(system.amount(scenario, quick=quick)), system.setting]
    with database(server) as url:
        environment = {**os.environ, "PATH": path, "DATABASE_URL": url}
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=within_s, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise FailedError(f"not done within {within_s} s") from error
    if done.returncode != 0:
        print(done.stderr, file=sys.stderr)
        raise FailedError(f"its script ended with status {done.returncode}")
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def measure_limits(server: EmbeddedPostgres, measured: Measured, seconds: int) -> None:
    """What the server can do at most, by pgbench; where there is no pgbench that is noted."""
    for name, clients in LIMITS.items():
        try:
            with database(server) as url:
                measured.figures.setdefault((name, "limit"), []).append(scenarios.limit(url, clients, seconds))
        except FileNotFoundError:
            measured.figures.pop((name, "limit"))
            measured.failures[name, "limit"] = "pgbench is not here"


@contextmanager
def database(server: EmbeddedPostgres) -> Iterator[str]:
    """A database for one measurement."""
    name = sql.Identifier("bench")
    with psycopg.connect(server.url, autocommit=True) as conn:
        conn.execute(sql.SQL("drop database if exists {} with (force)").format(name))
        conn.execute(sql.SQL("create database {}").format(name))
    yield server.url_for("bench")


def progress(text: str) -> None:
    """Tell the one who waits."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
