"""`make bench`: what durability costs here, on an embedded server with fsync on, or on the server in `$BENCH_URL`.

A table, then a JSON line for each scenario. Each is run several times on a fresh schema; the median is shown, and the
spread. The last column sets steps against the server's own limit: single-row inserts by pgbench, measured in between.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg

from bench import scenarios
from bench.scenarios import Figures
from bench.workflows import WORKFLOWS
from pgworkflows import EmbeddedPostgres, WorkflowEngine

DURABLE = {"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on", "max_wal_size": "2GB"}
LIMIT_CLIENTS = 16


def main() -> None:
    options = arguments()
    names = options.scenario or ["throughput", "latency", "event"]
    with server() as url:
        seen: dict[str, list[Figures]] = {name: [] for name in [*names, "limit"]}
        measure(url, "throughput", options.runs // 4)  # warm-up
        for _ in range(options.rounds):
            seen["limit"] += limit(url)
            for name in names:
                seen[name].append(measure(url, name, options.runs if name == "throughput" else options.singles))
        show({name: medians(rounds) for name, rounds in seen.items() if rounds})
        for name, rounds in seen.items():
            for figures in rounds:
                print(json.dumps({"scenario": name, **{key: round(value, 2) for key, value in figures.items()}}))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("scenario", nargs="*", choices=["throughput", "latency", "event", []], default=[])
    parser.add_argument("--runs", type=int, default=4000, help="runs of the throughput scenario")
    parser.add_argument("--singles", type=int, default=100, help="runs of the latency scenarios")
    parser.add_argument("--rounds", type=int, default=3)
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


def measure(url: str, name: str, runs: int) -> Figures:
    """One round of one scenario, on a fresh schema."""
    scenario: Callable[[WorkflowEngine, int], Figures] = {
        "throughput": scenarios.throughput,
        "latency": scenarios.latency,
        "event": scenarios.event_latency,
    }[name]
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("drop schema if exists pgworkflows cascade")
    with WorkflowEngine(url, workflows=WORKFLOWS) as engine:
        engine.migrate()
        return scenario(engine, runs)


def limit(url: str) -> list[Figures]:
    """The server's limit, where pgbench is installed."""
    try:
        return [scenarios.limit(url, LIMIT_CLIENTS, seconds=4)]
    except FileNotFoundError:
        return []


def medians(rounds: list[Figures]) -> dict[str, tuple[float, float, float]]:
    """The median, the lowest and the highest of each figure."""
    return {
        name: (statistics.median(values), min(values), max(values))
        for name in rounds[0]
        if (values := [figures[name] for figures in rounds])
    }


def show(figures: dict[str, dict[str, tuple[float, float, float]]]) -> None:
    """The table."""
    print(f"{'scenario':<12}{'figure':<16}{'median':>10}   lowest … highest")
    for scenario, named in figures.items():
        for name, (median, lowest, highest) in named.items():
            print(f"{scenario:<12}{name:<16}{median:>10.1f}   {lowest:.1f} … {highest:.1f}")
    if "limit" in figures and "throughput" in figures:
        ratio = figures["throughput"]["steps_per_s"][0] / figures["limit"]["inserts_per_s"][0]
        print(f"\nsteps/s are {ratio:.2f} × pgbench's single-row inserts/s with {LIMIT_CLIENTS} clients")
    elif "limit" not in figures:
        print("\n(no pgbench here: the server's limit was not measured)")


if __name__ == "__main__":
    main()
