"""`make chaos`: a storm of five minutes, or as long as told, and the proof that nothing was lost or done twice."""

from __future__ import annotations

import argparse
import faulthandler
import signal
import sys
import time

from .campaign import Conditions, seed_from_chance, storm
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
    before = time.monotonic()
    for line in report(result):
        print(line)
    print(f"(reported in {time.monotonic() - before:.1f} s)")
    return 1 if result.violations else 0


if __name__ == "__main__":
    sys.exit(main())
