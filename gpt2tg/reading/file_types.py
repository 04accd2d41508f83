"""Files that hold no plain text in UTF-8: recognised by their first bytes, and named with the way out."""

from __future__ import annotations

import codecs
import re
import shlex
from pathlib import Path

from gpt2tg.errors import UserError
from gpt2tg.io import lfs

# Enough to recognise a file by.
HEAD_BYTES = 1 << 13

UNPACK = "unpack it first"
AS_TEXT = "save its text as a .txt, in UTF-8"
AS_TABLE = "export it as .csv or .jsonl"

# First bytes, what such a file is, the way out.
SIGNATURES = (
    (b"%PDF-", "a PDF", AS_TEXT),
    (b"{\\rtf", "an RTF document", AS_TEXT),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Word or Excel file", f"{AS_TEXT}, or {AS_TABLE}"),
    (b"%!PS", "a PostScript file", AS_TEXT),
    (b"\x1f\x8b", "a gzip archive", UNPACK),
    (b"BZh", "a bzip2 archive", UNPACK),
    (b"\xfd7zXZ\0", "an xz archive", UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", UNPACK),
    (b"\x04\x22\x4d\x18", "an lz4 archive", UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (b"Rar!\x1a\x07", "a RAR archive", UNPACK),
    (b"PAR1", "a Parquet file", AS_TABLE),
    (b"ARROW1", "an Arrow file", AS_TABLE),
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

# What stands in a ZIP archive that is a document, and what it then is.
DOCUMENTS = (
    (b"word/", "a Word document", AS_TEXT),
    (b"xl/", "an Excel workbook", AS_TABLE),
    (b"ppt/", "a PowerPoint file", AS_TEXT),
    (b"application/epub+zip", "an EPUB book", AS_TEXT),
    (b"application/vnd.oasis.opendocument.spreadsheet", "an OpenDocument spreadsheet", AS_TABLE),
    (b"application/vnd.oasis.opendocument", "an OpenDocument text", AS_TEXT),
)
DOCUMENT_SUFFIXES = {".docx": DOCUMENTS[0], ".xlsx": DOCUMENTS[1], ".pptx": DOCUMENTS[2], ".epub": DOCUMENTS[3]}

# A place holder that git-annex leaves where a large file was not fetched.
ANNEX_POINTER = re.compile(rb"\S*/annex/objects/\S+\s*\Z")

# The longer marks first: UTF-32 begins like UTF-16.
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
WIDE_ENCODINGS = ("UTF-32LE", "UTF-32BE", "UTF-16LE", "UTF-16BE")

# In text of any language, so much can be shown: the rest are marks such as the zero-width joiner.
PRINTABLE_SHARE = 0.9

# Files that are read row by row: whatever begins them is checked there.
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")

# JSON that is no object a line would be read as plain text, braces and all.
WHOLE_JSON = (".json", ".ipynb", ".geojson")


def require_plain(path: Path, head: bytes, option: str | None) -> None:
    """Refuse a file that is recognised as something else than plain text in UTF-8.

    Args:
        head: its first `HEAD_BYTES`.

    Raises:
        UserError: names what it is, and the way out.
    """
    if path.suffix.lower() in WHOLE_JSON:
        raise UserError(
            f"{path} would be read as plain text: write it as .jsonl, an object a line, or name it .txt", option
        )
    if lfs.begins_pointer(head):
        raise lfs.refusal(path, option)
    if len(head) < HEAD_BYTES and ANNEX_POINTER.match(head):
        raise UserError(f"{path} is a git-annex pointer, not the file itself: fetch that with: git annex get", option)
    if encoding := wide_encoding(head):
        source, target = shlex.quote(str(path)), shlex.quote(str(path.with_suffix(f".utf8{path.suffix}")))
        raise UserError(
            f"{path} is {encoding}, expected UTF-8; convert it with: iconv -f {encoding} -t UTF-8 {source} > {target}",
            option,
        )
    for what, way_out in _signature(path, head):
        raise UserError(f"{path} is {what}, not plain text: {way_out}", option)


def is_table(path: Path) -> bool:
    """Whether a file holds its texts row by row, by its name."""
    return path.suffix.lower() in TABLE_SUFFIXES


def check_text_column(text_column: str | None, *paths: Path) -> None:
    """Refuse the name of a column where no file has any.

    Raises:
        UserError: all are plain text.
    """
    if text_column is not None and not any(map(is_table, paths)):
        raise UserError(f"{text_column} is for {', '.join(TABLE_SUFFIXES)}: {paths[0]} is plain text", "text_column")


def _signature(path: Path, head: bytes) -> list[tuple[str, str]]:
    if head.startswith(ZIP):
        found = [kind for kind in DOCUMENTS if kind[0] in head] or [
            DOCUMENT_SUFFIXES.get(path.suffix.lower(), (b"", "a ZIP archive", UNPACK))
        ]
        return [found[0][1:]]
    if head[257:262] == b"ustar":
        return [("a tar archive", UNPACK)]
    return [(what, way_out) for start, what, way_out in SIGNATURES if head.startswith(start)]


def wide_encoding(head: bytes) -> str | None:
    """UTF-16 or UTF-32, where the first bytes of a file are that: by a byte-order mark, or by how they read."""
    for mark, name in BYTE_ORDER_MARKS:
        if head.startswith(mark):
            return name
    if b"\0" not in head:
        return None
    return next((name for name in WIDE_ENCODINGS if _reads_as_text(head, name)), None)


def _reads_as_text(head: bytes, encoding: str) -> bool:
    """Whether bytes make sense in an encoding. In the wrong byte order, blanks and line breaks are other signs."""
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(head)  # the last character may be cut
    except UnicodeDecodeError:
        return False
    if not text or "\0" in text or not (text.isascii() or any(blank in text for blank in " \n\t")):
        return False
    return sum(sign.isprintable() or sign.isspace() for sign in text) >= PRINTABLE_SHARE * len(text)


def is_web_page(text: str) -> bool:
    """Whether a text begins as HTML does."""
    return text.lstrip().lower().startswith(("<!doctype html", "<html"))


def misnamed(path: Path, head: bytes) -> str | None:
    """What to tell of plain text that looks like something that is read in another way; None where it does not."""
    if is_table(path):
        return None
    if b"\r" in head.strip() and b"\n" not in head:
        return "its lines end in CR alone, and are read as one line: convert them with: tr '\\r' '\\n'"
    text = head.decode(errors="replace").removeprefix("\ufeff").lstrip()
    if is_web_page(text):
        return "looks like a web page: its tags are read as text too"
    first, *others = text.splitlines() or [""]
    if first.startswith("{") and first.endswith("}") and (not others or others[0].startswith("{")):
        return "looks like JSON, and is read as plain text: name it .jsonl to read its texts alone"
    names = {name.strip(' "').casefold() for name in re.split(r"[,;\t|]", first)}
    if len(names) > 1 and ("text" in names or {"prompt", "completion"} <= names):
        return "looks like a table, and is read as plain text: name it .csv to read its texts alone"
    return None
