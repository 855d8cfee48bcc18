"""The headers that keep a browser from doing what these pages never ask of it."""

from __future__ import annotations

from werkzeug.wrappers import Response

# Pico draws the marks of form elements as data: images.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not no-referrer: with that, browsers send "Origin: null" along with our own forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


def protect(answer: Response, *, keep: bool = False) -> Response:
    """An answer with these headers; unless it may be kept, nobody keeps it."""
    for name, value in HEADERS.items():
        answer.headers[name] = value
    if not keep:
        answer.headers["Cache-Control"] = "no-store"
    return answer
