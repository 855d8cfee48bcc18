"""Two codecs to copy: Fernet, of the package cryptography, and zlib, of the standard library."""

from __future__ import annotations

import base64
import zlib

from cryptography.fernet import Fernet, MultiFernet


class FernetCodec:
    """Encrypts with the first of its keys, and reads what was encrypted with any of them."""

    name = "fernet"

    def __init__(self, *keys: str) -> None:
        self._fernet = MultiFernet([Fernet(key) for key in keys])

    def encode(self, text: str) -> str:
        return self._fernet.encrypt(text.encode()).decode()

    def decode(self, data: str) -> str:
        return self._fernet.decrypt(data).decode()


class ZlibCodec:
    """Compresses what has at least `threshold` characters, if that makes it shorter."""

    name = "zlib"

    def __init__(self, threshold: int = 2000) -> None:
        self._threshold = threshold

    def encode(self, text: str) -> str | None:
        if len(text) < self._threshold:
            return None
        data = base64.b64encode(zlib.compress(text.encode())).decode()
        return data if len(data) < len(text) else None

    def decode(self, data: str) -> str:
        return zlib.decompress(base64.b64decode(data)).decode()
