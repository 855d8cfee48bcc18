"""The comparison with other systems tells what failed, and replaces its own part of the page alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.peers import report
from bench.peers.environments import HERE, version_of
from bench.peers.report import Measured
from bench.peers.systems import OURS, PEERS

DBOS = next(system for system in PEERS if system.peer == "dbos")


def measured() -> Measured:
    """Two rounds of throughput: ours was measured, DBOS failed, the others were not asked."""
    rounds = [
        {"start_per_s": rate, "runs_per_s": rate, "steps_per_s": 5 * rate}
        for rate in (1000.0, 2000.0)
    ]  # fmt: skip
    return Measured(
        [OURS, DBOS],
        rounds=2,
        server_version="18.0",
        load_before=0.5,
        figures={(OURS.name, "throughput"): rounds, ("pgbench, 16 clients", "limit"): [{"inserts_per_s": 15000.0}]},
        failures={(DBOS.name, "throughput"): "not done within 45 s"},
    )


def test_the_table_has_medians_and_says_what_failed() -> None:
    part = report.page(measured())
    assert "| pgworkflows | 1,500 | 7,500 | - | - | - |" in part
    assert f"| {DBOS.name} | failed | failed | - | - | - |" in part
    assert f"- {DBOS.name}, `throughput`: not done within 45 s." in part
    assert "Steps/s of pgworkflows: 0.50 × the inserts/s of pgbench with 16 clients." in part
    assert "steps_per_s" in report.screen(measured())


def test_nothing_but_its_own_part_of_the_page_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    monkeypatch.setattr(report, "PAGE", page)
    for _ in range(2):
        report.write(measured())
        assert page.read_text() == f"before\n{report.page(measured())}\nafter\n"


def test_the_page_has_a_place_for_it() -> None:
    text = report.PAGE.read_text()
    assert text.count(report.BEGIN) == text.count(report.END) == 1


def test_every_peer_is_pinned_and_no_pin_names_a_place() -> None:
    assert version_of("pg-workflows", "pg-workflows") in (HERE / "package-lock.json").read_text()
    for path in [*HERE.glob("requirements-*.txt"), HERE / "package.json"]:
        assert "://" not in path.read_text(), path
    assert '"resolved"' not in (HERE / "package-lock.json").read_text()
