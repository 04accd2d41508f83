"""Recognise file types by name and first bytes: tables, and files that are not plain text in UTF-8."""

from __future__ import annotations

import codecs
import re
import shlex
from pathlib import Path

from gpt2tg.errors import UserError
from gpt2tg.io import lfs
from gpt2tg.reading.compressed import text_suffix

# How much of the beginning of a file is needed to recognise it.
HEAD_BYTES = 1 << 13

JSON_LINES_SUFFIXES = (".jsonl", ".ndjson")
LINE_TABLE_SUFFIXES = (".csv", ".tsv", *JSON_LINES_SUFFIXES)

# Tables that are no lines of text.
BINARY_TABLE_SUFFIXES = (".parquet", ".arrow", ".feather")
TABLE_SUFFIXES = (*LINE_TABLE_SUFFIXES, ".json", *BINARY_TABLE_SUFFIXES)

# JSON that is no table: read as plain text, its braces would become text too.
JSON_DOCUMENT_SUFFIXES = (".ipynb", ".geojson")

UNPACK = "unpack it first"
NAME_IT = "end its name in {}, such as .txt{}, or unpack it"
AS_TEXT = "save its text as a .txt, in UTF-8"
AS_TABLE = "export it as .csv or .jsonl"

# First bytes, what the file is, what to do.
SIGNATURES = (
    (b"%PDF-", "a PDF", AS_TEXT),
    (b"{\\rtf", "an RTF document", AS_TEXT),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Word or Excel file", f"{AS_TEXT}, or {AS_TABLE}"),
    (b"%!PS", "a PostScript file", AS_TEXT),
    (b"\x1f\x8b", "a gzip archive", NAME_IT.format(".gz", ".gz")),
    (b"BZh", "a bzip2 archive", NAME_IT.format(".bz2", ".bz2")),
    (b"\xfd7zXZ\0", "an xz archive", NAME_IT.format(".xz", ".xz")),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", NAME_IT.format(".zst", ".zst")),
    (b"\x04\x22\x4d\x18", "an lz4 archive", UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (b"Rar!\x1a\x07", "a RAR archive", UNPACK),
    (b"PAR1", "a Parquet file", "end its name in .parquet"),
    (b"ARROW1", "an Arrow file", "end its name in .arrow"),
    (b"FEA1", "a Feather file", AS_TABLE),
    (b"SQLite format 3\0", "an SQLite database", AS_TABLE),
    (b"\x89HDF\r\n", "an HDF5 file", AS_TABLE),
    (b"\x93NUMPY", "a NumPy array", AS_TABLE),
    (b"\x89PNG\r\n", "a picture (PNG)", AS_TEXT),
    (b"\xff\xd8\xff", "a picture (JPEG)", AS_TEXT),
    (b"GIF8", "a picture (GIF)", AS_TEXT),
    (b"\x7fELF", "a program", "give a text file"),
)

ZIP = (b"PK\x03\x04", b"PK\x05\x06")

# Names in a ZIP archive that show it to be a document, what it is, what to do.
DOCUMENTS = (
    (b"word/", "a Word document", AS_TEXT),
    (b"xl/", "an Excel workbook", AS_TABLE),
    (b"ppt/", "a PowerPoint file", AS_TEXT),
    (b"application/epub+zip", "an EPUB book", AS_TEXT),
    (b"application/vnd.oasis.opendocument.spreadsheet", "an OpenDocument spreadsheet", AS_TABLE),
    (b"application/vnd.oasis.opendocument", "an OpenDocument text", AS_TEXT),
)
DOCUMENT_SUFFIXES = {".docx": DOCUMENTS[0], ".xlsx": DOCUMENTS[1], ".pptx": DOCUMENTS[2], ".epub": DOCUMENTS[3]}

# What git-annex leaves in place of a large file that was not fetched.
ANNEX_POINTER = re.compile(rb"\S*/annex/objects/\S+\s*\Z")

# The longer marks first: the mark of UTF-32 begins with that of UTF-16.
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
WIDE_ENCODINGS = ("UTF-32LE", "UTF-32BE", "UTF-16LE", "UTF-16BE")

# The share of printable characters that text of any language has. The rest are marks such as the zero-width joiner.
PRINTABLE_SHARE = 0.9


def is_table(path: Path) -> bool:
    """Whether a file is a table (csv, tsv, jsonl, json, Parquet or Arrow), by its name."""
    return text_suffix(path) in TABLE_SUFFIXES


def is_binary_table(path: Path) -> bool:
    """Whether a file is a Parquet or Arrow file, by its name. These are never compressed as a whole."""
    return path.suffix.lower() in BINARY_TABLE_SUFFIXES


def is_json_lines(path: Path) -> bool:
    """Whether a file holds a JSON object per line, by its name."""
    return text_suffix(path) in JSON_LINES_SUFFIXES


def check_text_column(text_column: str | None, *paths: Path) -> None:
    """Refuse the name of a column if none of the files is a table.

    Raises:
        UserError: a column is named, and all files are plain text.
    """
    if text_column is not None and not any(map(is_table, paths)):
        raise UserError(
            f"{text_column} names a column of a table ({', '.join(TABLE_SUFFIXES)}), but {paths[0]} is plain text: "
            "leave the flag out, or give a table",
            "text_column",
        )


def require_plain_text(path: Path, head: bytes, option: str | None) -> None:
    """Refuse a file that its name or its first bytes show to be something else than plain text in UTF-8.

    Args:
        head: the first `HEAD_BYTES` of the file.
        option: the flag that named the file, for errors.

    Raises:
        UserError: names the file type and what to do.
    """
    if text_suffix(path) in JSON_DOCUMENT_SUFFIXES:
        raise UserError(
            f"{path} is JSON and would be read as plain text: write one object per line into a .jsonl, "
            "or name the file .txt to train on it as it is",
            option,
        )
    if lfs.begins_pointer(head):
        raise lfs.refusal(path, option)
    if len(head) < HEAD_BYTES and ANNEX_POINTER.match(head):
        raise UserError(f"{path} is a git-annex pointer, not the file itself: run git annex get", option)
    if encoding := detect_wide_encoding(head):
        source, target = shlex.quote(str(path)), shlex.quote(str(path.with_suffix(f".utf8{path.suffix}")))
        raise UserError(
            f"{path} is {encoding}, expected UTF-8; convert it with: iconv -f {encoding} -t UTF-8 {source} > {target}",
            option,
        )
    if other := _recognise_other_type(path, head):
        file_type, way_out = other
        raise UserError(f"{path} is {file_type}, not plain text: {way_out}", option)


def _recognise_other_type(path: Path, head: bytes) -> tuple[str, str] | None:
    """Return what a file is, and what to do, if its first bytes show that it is not plain text."""
    if head.startswith(ZIP):
        other_zip = DOCUMENT_SUFFIXES.get(path.suffix.lower(), (b"", "a ZIP archive", UNPACK))
        return next((document for document in DOCUMENTS if document[0] in head), other_zip)[1:]
    if head[257:262] == b"ustar":
        return "a tar archive", UNPACK
    return next(((what, way_out) for start, what, way_out in SIGNATURES if head.startswith(start)), None)


def detect_wide_encoding(head: bytes) -> str | None:
    """Return the name of UTF-16 or UTF-32 if a file begins with its byte-order mark, or decodes to text in it."""
    for mark, name in BYTE_ORDER_MARKS:
        if head.startswith(mark):
            return name
    if b"\0" not in head:
        return None
    return next((name for name in WIDE_ENCODINGS if _decodes_to_text(head, name)), None)


def _decodes_to_text(head: bytes, encoding: str) -> bool:
    """Whether bytes are plausible text in an encoding. In the wrong byte order, spaces and line breaks do not occur."""
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(head)  # incremental: the last character may be cut
    except UnicodeDecodeError:
        return False
    if not text or "\0" in text or not (text.isascii() or any(space in text for space in " \n\t")):
        return False
    return sum(sign.isprintable() or sign.isspace() for sign in text) >= PRINTABLE_SHARE * len(text)


def is_web_page(text: str) -> bool:
    """Whether a text begins as an HTML page does."""
    return text.lstrip().lower().startswith(("<!doctype html", "<html"))


def format_warning(path: Path, head: bytes) -> str | None:
    """Return a warning if a plain-text file looks like JSON, a table, a web page or old Mac text; None if not.

    Args:
        head: the first `HEAD_BYTES` of the file.
    """
    if is_table(path):
        return None
    if b"\r" in head.strip() and b"\n" not in head:
        return "its lines end in CR alone, so it is read as one line: convert it with: tr '\\r' '\\n'"
    text = head.decode(errors="replace").removeprefix("\ufeff").lstrip()
    if is_web_page(text):
        return "looks like a web page: its tags are read as text too"
    first, *others = text.splitlines() or [""]
    if first.startswith("{") and first.endswith("}") and (not others or others[0].startswith("{")):
        return "looks like JSON but is read as plain text: name it .jsonl to read only its texts"
    names = {name.strip(' "').casefold() for name in re.split(r"[,;\t|]", first)}
    if len(names) > 1 and ("text" in names or {"prompt", "completion"} <= names):
        return "looks like a table but is read as plain text: name it .csv to read only its texts"
    return None
