"""Open a file that hashes what is read, so that a second read can be checked against the first."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path


class ZeroByteError(ValueError):
    """The file holds a zero byte: it is binary, not text."""


class HashedFile(io.FileIO):
    """A binary file that counts and hashes the bytes read from it. Complete once the file was read to its end."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.size = 0
        self._hash = hashlib.sha256()

    @property
    def digest(self) -> str:
        """SHA-256 of the bytes read so far, in hexadecimal."""
        return self._hash.hexdigest()

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # all that io.BufferedReader passes
        """Fill a buffer, and return the number of bytes read.

        Raises:
            ZeroByteError: one of them is zero.
        """
        count = super().readinto(buffer) or 0
        chunk = bytes(memoryview(buffer)[:count])
        if b"\0" in chunk:
            raise ZeroByteError
        self.size += count
        self._hash.update(chunk)
        return count
