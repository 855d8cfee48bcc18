"""From where a worker's claims look: from a mark, while a full look is slow. Pure; time is an input."""

from __future__ import annotations

from pgworkflows.claims import Claim

SHARE = 0.01
"""How much of the time full looks may take, as long as they are no further apart than `LONGEST_S`."""
LONGEST_S = 10.0


class LowWater:
    """Remembers the mark below which the last full look has left nothing, and when the next one is due.

    A transaction that stays open keeps dead entries in the indexes that a claim reads, and each claim walks over them.
    The mark spares it that. What is made ready below it afterwards, by a transaction that commits late or a run that is
    given back at its old place, is found by the next full look. While full looks are quick there is no mark.
    """

    def __init__(self) -> None:
        self._mark: str | None = None
        self._full_at_s = 0.0

    def since(self, now_s: float) -> str | None:
        """From where the claim at the monotonic time `now_s` looks; None: everywhere."""
        return None if now_s >= self._full_at_s else self._mark

    def looked(self, since: str | None, claim: Claim, now_s: float) -> None:
        """Take in the answer to a claim that has looked from `since`."""
        if since is None:
            self._mark = claim.mark
            self._full_at_s = now_s + min(claim.looked_s / SHARE, LONGEST_S)

    def forget(self) -> None:
        """Look everywhere next: there are other lanes, or runs have come back at their old places."""
        self._mark = None
