"""`make bench`: what durability costs here, on an embedded server with fsync on, or on the server in `$BENCH_URL`.

A table, with the targets beside the figures that have one, then a JSON line for each scenario and round. Each is
measured in several rounds on a fresh schema; the median is shown, and the spread. The server's own limit, single-row
inserts by pgbench, is measured in between.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from bench import scenarios
from bench.catalogue import LIGHT, SCENARIOS
from bench.figures import Figures, medians, table
from bench.workflows import WORKFLOWS
from pgworkflows import EmbeddedPostgres, WorkflowEngine

DURABLE = {"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on", "max_wal_size": "2GB"}
LIMIT_CLIENTS = 16
LIMIT_S = 4
ROUNDS = 3
WARM_UP_RUNS = 1000


def main() -> None:
    options = arguments()
    names = options.scenario or LIGHT
    with server() as url:
        seen: dict[str, list[Figures]] = {name: [] for name in ["limit", *names]}
        measure(url, "throughput", WARM_UP_RUNS)
        for number in range(options.rounds or (ROUNDS if set(names) & set(LIGHT) else 1)):
            wanted = [name for name in names if number == 0 or options.rounds or not SCENARIOS[name].heavy]
            seen["limit"] += limit(url) if "throughput" in wanted else []
            for name in wanted:
                figures = measure(url, name, options.size or SCENARIOS[name].size)
                if name == "throughput" and seen["limit"]:
                    figures["steps_per_insert"] = figures["steps_per_s"] / seen["limit"][-1]["inserts_per_s"]
                seen[name].append(figures)
    spreads = {name: medians(rounds) for name, rounds in seen.items() if rounds}
    print(*table(spreads, {name: SCENARIOS[name].targets for name in names}), sep="\n")
    if "throughput" in names and not seen["limit"]:
        print("\n(no pgbench here: the server's limit was not measured)")
    for name, rounds in seen.items():
        for figures in rounds:
            print(json.dumps({"scenario": name, **{key: round(value, 2) for key, value in figures.items()}}))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("scenario", nargs="*", choices=[*SCENARIOS, []], default=[], help=f"else {' '.join(LIGHT)}")
    parser.add_argument("--size", "--runs", type=int, help="how much of a scenario's work: runs, steps, rows, seconds")
    parser.add_argument("--rounds", type=int, help=f"else {ROUNDS}, and one of the heavy scenarios")
    return parser.parse_args()


@contextmanager
def server() -> Iterator[str]:
    """A server that keeps what it acknowledges."""
    named = os.environ.get("BENCH_URL")
    if named:
        yield named
    else:
        with EmbeddedPostgres(settings=DURABLE) as embedded:
            yield embedded.url


def measure(url: str, name: str, size: int) -> Figures:
    """One round of one scenario, on a fresh schema."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("drop schema if exists pgworkflows cascade")
    with WorkflowEngine(url, workflows=WORKFLOWS) as engine:
        engine.migrate()
        return SCENARIOS[name].measure(engine, size)


def limit(url: str) -> list[Figures]:
    """The server's limit, where pgbench is installed."""
    try:
        return [scenarios.limit(url, LIMIT_CLIENTS, LIMIT_S)]
    except FileNotFoundError:
        return []


if __name__ == "__main__":
    main()
