"""Figures by name, and how they are told: quantiles, medians over rounds, the table with its targets."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

Figures = dict[str, float]
Spread = tuple[float, float, float]


def quantiles(seen: Sequence[float]) -> Figures:
    """The median and the 95th percentile, in milliseconds, of what was seen in seconds."""
    return {"p50_ms": quantile(seen, 0.5) * 1000, "p95_ms": quantile(seen, 0.95) * 1000}


def quantile(seen: Sequence[float], share: float) -> float:
    """The value that this share of what was seen lies below."""
    ordered = sorted(seen)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def medians(rounds: Sequence[Figures]) -> dict[str, Spread]:
    """The median, the lowest and the highest of each figure."""
    return {
        name: (statistics.median(values), min(values), max(values))
        for name in rounds[0]
        if (values := [figures[name] for figures in rounds])
    }


def table(figures: Mapping[str, Mapping[str, Spread]], targets: Mapping[str, Mapping[str, str]]) -> list[str]:
    """A line for each figure, with its target beside it where it has one."""
    lines = [f"{'scenario':<12}{'figure':<24}{'median':>10}   lowest … highest"]
    for scenario, named in figures.items():
        for name, (median, lowest, highest) in named.items():
            spread = f"{written(lowest)} … {written(highest)}"
            target = targets.get(scenario, {}).get(name)
            told = f"{spread:<24}target: {target}" if target else spread
            lines.append(f"{scenario:<12}{name:<24}{written(median):>10}   {told}")
    return lines


def written(value: float) -> str:
    """Two decimals for small figures, one for the others."""
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
