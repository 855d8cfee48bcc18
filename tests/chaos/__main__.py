"""`make chaos`: a storm of five minutes, or as long as told, and the proof that nothing was lost or done twice."""

from __future__ import annotations

import argparse
import faulthandler
import json
import signal
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from .campaign import Conditions, Result, seed_from_chance, storm
from .report import report
from .sabotage import SABOTAGES


def main() -> int:
    faulthandler.register(signal.SIGUSR1)
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0, help="how long things break")
    parser.add_argument("--seed", type=int, default=None, help="what is dealt out; by chance if left out")
    parser.add_argument("--runs-per-s", type=float, default=Conditions.runs_per_s, help="started by all clients")
    parser.add_argument("--sabotage", choices=SABOTAGES, default=None, help="break the engine, to see it noticed")
    given = parser.parse_args()
    seed = seed_from_chance() if given.seed is None else given.seed
    print(f"seed {seed}: chaos for {given.seconds:g} s", flush=True)
    result = storm(seed, Conditions(seconds=given.seconds, runs_per_s=given.runs_per_s, sabotage=given.sabotage))
    for line in report(result):
        print(line)
    if result.violations:
        print(f"all that is known: {_kept(result)}")
    return 1 if result.violations else 0


def _kept(result: Result) -> Path:
    """The file with the history, the faults and the logs, for whoever has to understand a violation."""
    path = Path(tempfile.mkdtemp(prefix="pgw-chaos-")) / f"{result.seed}.json"
    path.write_text(json.dumps(asdict(result), default=str, indent=1))
    return path


if __name__ == "__main__":
    sys.exit(main())
