"""Read a file that hashes what is read, so that a second read can be checked against the first."""

from __future__ import annotations

import hashlib
import io
from typing import BinaryIO


class ZeroByteError(ValueError):
    """The file holds a zero byte: it is binary, not text."""


class HashedFile(io.RawIOBase):
    """A binary file that counts and hashes the bytes read from it. Complete once the file was read to its end."""

    def __init__(self, source: BinaryIO) -> None:
        """source: an open file, closed with this one."""
        self.size = 0
        self._source = source
        self._hash = hashlib.sha256()

    @property
    def digest(self) -> str:
        """SHA-256 of the bytes read so far, in hexadecimal."""
        return self._hash.hexdigest()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # all that io.BufferedReader passes
        """Fill a buffer, and return the number of bytes read.

        Raises:
            ZeroByteError: one of them is zero.
        """
        chunk = self._source.read(len(buffer))
        count = len(chunk)
        if b"\0" in chunk:
            raise ZeroByteError
        buffer[:count] = chunk
        self.size += count
        self._hash.update(chunk)
        return count

    def close(self) -> None:
        if not self.closed:
            self._source.close()
        super().close()
