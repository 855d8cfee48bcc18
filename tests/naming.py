"""Names of parametrized tests, the same in every process that collects them."""

from __future__ import annotations

import re


def named(value: object) -> str:
    """What `str` says, without addresses."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))
