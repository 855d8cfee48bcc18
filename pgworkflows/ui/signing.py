"""What the browser keeps for us and must not make up: tokens against forged forms, and what an action said."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from typing import cast

NONCE = re.compile(r"[\w-]{43}", re.ASCII)
FORM, SAID = "form", "said"
MAX_SEALED = 2700
"""In bytes: a cookie holds 4,096, with its name and what it takes to write them as text."""


class Signer:
    """Signs text for a purpose; what was signed for one is worth nothing for another."""

    def __init__(self, secret_key: str | bytes | None) -> None:
        """Without a key one is made up, which other processes do not know."""
        if not isinstance(cast(object, secret_key), str | bytes | None):
            raise TypeError(f"secret_key must be text or bytes, not {type(secret_key).__name__}")
        key = secret_key.encode() if isinstance(secret_key, str) else secret_key
        if key is not None and len(key) < 16:
            raise ValueError("secret_key must have at least 16 characters: take secrets.token_urlsafe()")
        self._key = key or secrets.token_bytes(32)

    def token(self, nonce: str) -> str:
        """What a form carries, for the browser whose cookie holds `nonce`."""
        return self._mac(FORM, nonce)

    def fits(self, nonce: str, token: str) -> bool:
        """Whether `token` was made for `nonce`."""
        return NONCE.fullmatch(nonce) is not None and hmac.compare_digest(self.token(nonce).encode(), token.encode())

    def sealed(self, text: str, nonce: str) -> str:
        """Text for a cookie, cut to what one holds, for the browser of that nonce alone."""
        body = base64.urlsafe_b64encode(text.encode(errors="replace")[:MAX_SEALED]).decode()
        return f"{body}.{self._mac(SAID, nonce + body)}"

    def opened(self, cookie: str, nonce: str) -> str | None:
        """The text that was sealed, None if it was not sealed with this key for that browser."""
        body, _, mac = cookie.rpartition(".")
        if not hmac.compare_digest(self._mac(SAID, nonce + body).encode(), mac.encode()):
            return None
        return base64.urlsafe_b64decode(body).decode(errors="ignore")

    def _mac(self, purpose: str, text: str) -> str:
        return hmac.new(self._key, f"pgworkflows.ui:{purpose}:{text}".encode(), hashlib.sha256).hexdigest()


def new_nonce() -> str:
    """A random name for a browser."""
    return secrets.token_urlsafe(32)
