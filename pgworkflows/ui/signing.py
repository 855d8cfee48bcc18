"""What the browser keeps for us and must not make up: tokens against forged forms, and what an action said."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
import secrets
from typing import Any, cast

NONCE = re.compile(r"[\w-]{43}", re.ASCII)
FORM, SAID = "form", "said"


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

    def sealed(self, value: Any) -> str:
        """A JSON value as text for a cookie, which its reader can tell from one that somebody else has made."""
        body = base64.urlsafe_b64encode(json.dumps(value).encode()).decode()
        return f"{body}.{self._mac(SAID, body)}"

    def opened(self, text: str) -> Any:
        """The value that was sealed, None if it was not sealed with this key."""
        body, _, mac = text.rpartition(".")
        if not hmac.compare_digest(self._mac(SAID, body).encode(), mac.encode()):
            return None
        try:
            return json.loads(base64.urlsafe_b64decode(body))
        except (ValueError, binascii.Error):
            return None

    def _mac(self, purpose: str, text: str) -> str:
        return hmac.new(self._key, f"pgworkflows.ui:{purpose}:{text}".encode(), hashlib.sha256).hexdigest()


def new_nonce() -> str:
    """A random name for a browser."""
    return secrets.token_urlsafe(32)
