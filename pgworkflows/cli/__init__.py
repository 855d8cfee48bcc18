"""The command line: `pgworkflows …`, and the same commands in Flask and in Django. Needs the extra `cli`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run `pgworkflows …` as the words of this process say, and end it with the command's exit status."""
    try:
        from pgworkflows.cli.program import program
    except ModuleNotFoundError as error:
        if error.name not in {"click", "rich"}:
            raise
        sys.exit("pgworkflows: the command line needs click and rich: pip install 'pgworkflows[cli]'")
    program(prog_name="pgworkflows")
