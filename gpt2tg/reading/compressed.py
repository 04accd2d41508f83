"""Read files compressed with gzip, zstd, xz or bzip2 as if they were not, by the suffix of their names."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from pathlib import Path
from typing import BinaryIO, cast

COMPRESSION_SUFFIXES = (".gz", ".zst", ".xz", ".bz2")


class DamagedFileError(ValueError):
    """Compressed data that is truncated or altered. The message starts with a verb: the caller names the file."""


def compression(path: Path) -> str:
    """Return the suffix of a compressed file, in lower case; an empty string for any other."""
    suffix = path.suffix.lower()
    return suffix if suffix in COMPRESSION_SUFFIXES else ""


def text_suffix(path: Path) -> str:
    """Return the suffix that names the format of the content, in lower case: that of x.jsonl.zst is .jsonl."""
    return Path(path.stem).suffix.lower() if compression(path) else path.suffix.lower()


def open_content(path: Path) -> BinaryIO:
    """Open a file for reading bytes, decompressed if its suffix names a compression.

    Reading raises a DamagedFileError where the compressed data is damaged.

    Raises:
        OSError: the file cannot be opened.
    """
    return decompressed(path.open("rb"), compression(path))


def decompressed(file: BinaryIO, suffix: str) -> BinaryIO:
    """Return a reader of the decompressed content of an open file, which closes the file; the file itself for "".

    Args:
        suffix: one of COMPRESSION_SUFFIXES, or an empty string.
    """
    if not suffix:
        return file
    return io.BufferedReader(_Decompressed(file, suffix))


class _Decompressed(io.RawIOBase):
    """The decompressed content of a file."""

    def __init__(self, file: BinaryIO, suffix: str) -> None:
        self._file, self._suffix = file, suffix
        self._content = _decompressor(file, suffix)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # all that io.BufferedReader passes
        """Fill a buffer, and return the number of bytes read.

        Raises:
            DamagedFileError: the data cannot be decompressed.
        """
        try:
            return self._content.readinto(buffer)  # type: ignore[attr-defined,no-any-return]  # all readers have it
        except (EOFError, zlib.error, lzma.LZMAError) as error:
            raise self._damage(error) from None
        except OSError as error:
            if error.errno is not None:
                raise
            raise self._damage(error) from None

    def _damage(self, error: Exception) -> DamagedFileError:
        return DamagedFileError(f"is no complete {self._suffix} file ({error}): get or make it again")

    def close(self) -> None:
        if not self.closed:
            self._content.close()
            self._file.close()
        super().close()


def _decompressor(file: BinaryIO, suffix: str) -> BinaryIO:
    if suffix == ".gz":
        return cast("BinaryIO", gzip.GzipFile(fileobj=file))
    if suffix == ".bz2":
        return cast("BinaryIO", bz2.BZ2File(file))
    if suffix == ".xz":
        return cast("BinaryIO", lzma.LZMAFile(file))
    import pyarrow

    return cast("BinaryIO", pyarrow.CompressedInputStream(pyarrow.PythonFile(file, "r"), "zstd"))
