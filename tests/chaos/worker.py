"""A worker process of a storm: `python -m tests.chaos.worker OPTIONS`, with options as JSON: url, ledger, sabotage, and
those of Worker."""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path

from pgworkflows import WorkflowEngine

from .ledger import Ledger
from .sabotage import sabotage_worker
from .stories import workflows


def main() -> None:
    options = json.loads(sys.argv[1])
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(level=logging.INFO, format="%(created).3f %(levelname)s %(message)s")
    sabotage_worker(options.pop("sabotage"))
    url, ledger = options.pop("url"), Ledger(Path(options.pop("ledger")))
    with WorkflowEngine(url, workflows=workflows(ledger)) as engine:
        engine.worker(**options).run_forever()


if __name__ == "__main__":
    main()
