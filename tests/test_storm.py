"""Many runs with children and theirs, and everything that can happen to them, at the same time."""

from __future__ import annotations

from storm import Storm

SEED = 1
"""Decides what each thread does; how they meet is chance."""


def test_families_come_through_a_storm(database_url: str) -> None:
    storm = Storm(database_url, SEED)
    storm.rage(4)
    print(f"seed {SEED}: {storm.happened}")
    assert not storm.wrongs
    assert {"cancel", "complete written", "died", "pruned", "retry", "suspend written"} <= {*storm.happened}
