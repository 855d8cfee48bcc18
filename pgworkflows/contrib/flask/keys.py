"""The idempotency key of a request."""

from __future__ import annotations

from urllib.parse import quote

from flask import abort, request

from pgworkflows.limits import MAX_IDENTIFIER_LENGTH

HEADER = "Idempotency-Key"


def idempotency_key(scope: object = "", *, header: str = HEADER, required: bool = False) -> str | None:
    """The key of a start, from the header of the request that asks for it; None if it has none.

    Callers make up their keys: the endpoint stands before them, and `scope`, which tells one caller from another, such
    as the user's id. Answers 400 when the header cannot be a key, or is missing and `required`.
    """
    sent = request.headers.get(header, "").strip()
    if not sent:
        if required:
            abort(400, f"the header {header} is missing")
        return None
    # As the draft of the header's standard has it, it comes in quotes.
    value = sent[1:-1] if len(sent) > 1 and sent[0] == sent[-1] == '"' else sent
    # No caller's key reads like another scope's.
    before = f"{request.endpoint}/{quote(str(scope), safe='')}/"
    room = MAX_IDENTIFIER_LENGTH - len(before)
    if not value.strip() or not value.isprintable() or len(value) > room:
        abort(400, f"the header {header} must have 1 to {room} printable characters")
    return before + value
