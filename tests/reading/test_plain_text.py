"""Split plain text into examples: what is kept, dropped and refused."""

from __future__ import annotations

import os
import random
import re
import sys
import tracemalloc
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest

from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.errors import UserError
from gpt2tg.options import TrainingOptions
from gpt2tg.reading import plain_text, utf8
from gpt2tg.reading.plain_text import Piece, pieces
from gpt2tg.training.data.corpus import Corpus, scan_corpus
from gpt2tg.training.data.file_pass import TextFormat
from gpt2tg.training.data.sources import plan_sources
from gpt2tg.training.model.new_tokenizer import train_tokenizer

MODES = ("line", "paragraph", "file")


def write(directory: Path, content: str | bytes) -> Path:
    path = directory / "text.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def scan(path: Path, mode: str, option: str) -> Corpus:
    return scan_corpus((str(path),), TextFormat(mode), option)


def pieces_of(path: Path, mode: str) -> Iterator[Piece]:
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        yield from pieces(file, mode)


def pieces_by_example(path: Path, mode: str) -> list[list[str]]:
    """Return the pieces of each example, after checking that only the last piece ends it."""
    found: list[list[str]] = [[]]
    for piece in pieces_of(path, mode):
        found[-1].append(piece.text)
        if piece.ends:
            found.append([])
    assert found.pop() == []
    return found


def read(path: Path, mode: str) -> list[str]:
    return ["".join(parts) for parts in pieces_by_example(path, mode)]


# ---- what an example is ----


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param("one\ntwo\n", ["one", "two"], id="plain"),
        pytest.param("one\n\n\n\ntwo\n\n", ["one", "two"], id="empty lines"),
        pytest.param("one\n   \n\t\n\u3000\ntwo\n", ["one", "two"], id="lines of white space"),
        pytest.param("    one\n\ttwo  \n three \t\n", ["    one", "\ttwo  ", " three \t"], id="indented"),
        pytest.param("one\ntwo", ["one", "two"], id="no newline at the end"),
        pytest.param("\n\none", ["one"], id="starts with empty lines"),
    ],
)
def test_each_non_empty_line_is_an_example(tmp_path: Path, content: str, expected: list[str]) -> None:
    assert read(write(tmp_path, content), "line") == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param("a\nb\n\nc\n", ["a\nb", "c"], id="plain"),
        pytest.param("a\n\n\n\nb\n", ["a", "b"], id="several blank lines"),
        pytest.param("a\n \t \nb\n\xa0\nc\n", ["a", "b", "c"], id="lines of white space"),
        pytest.param("\n\na\n\n\n", ["a"], id="blank lines around"),
        pytest.param("  a  \n    b\t\n", ["  a  \n    b\t"], id="indented"),
        pytest.param("a\n\nb\nc", ["a", "b\nc"], id="no newline at the end"),
    ],
)
def test_blank_lines_separate_paragraphs(tmp_path: Path, content: str, expected: list[str]) -> None:
    assert read(write(tmp_path, content), "paragraph") == expected


@pytest.mark.parametrize("content", ["a\nb\n", "a", "\n\n  a \n\n\n", "a\n\n\nb\n \n", " a\t\n\n"])
def test_file_is_one_example_verbatim(tmp_path: Path, content: str) -> None:
    assert read(write(tmp_path, content), "file") == [content]


# ---- bytes to characters ----


@pytest.mark.parametrize(("mode", "expected"), [("line", "a"), ("paragraph", "a"), ("file", "a\n")])
def test_byte_order_mark_is_dropped(tmp_path: Path, mode: str, expected: str) -> None:
    assert read(write(tmp_path, b"\xef\xbb\xbfa\n"), mode) == [expected]


def test_only_the_first_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    assert read(write(tmp_path, "\ufeff\ufeffa\n\ufeffb\n"), "line") == ["\ufeffa", "\ufeffb"]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("line", ["a", "b", "c"]), ("paragraph", ["a\nb", "c"]), ("file", ["a\nb\n\n \nc\n"])],
)
def test_crlf_is_read_as_lf(tmp_path: Path, mode: str, expected: list[str]) -> None:
    assert read(write(tmp_path, "a\r\nb\r\n\r\n \r\nc\r\n"), mode) == expected


@pytest.mark.parametrize("size", range(1, 9))
def test_crlf_across_reads_is_read_as_lf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(plain_text, "PIECE_CHARACTERS", size)
    assert read(write(tmp_path, "abc d\r\nef \r\n\r\ng\r\n"), "file") == ["abc d\nef \n\ng\n"]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("line", ["a\rb\r", "\rc\r"]), ("paragraph", ["a\rb\r\n\rc\r"]), ("file", ["a\rb\r\n\rc\r"])],
)
def test_lone_cr_is_left_alone(tmp_path: Path, mode: str, expected: list[str]) -> None:
    assert read(write(tmp_path, "a\rb\r\r\n\rc\r"), mode) == expected


@pytest.mark.parametrize("mark", ["\v", "\f", "\x85", "\u2028", "\u2029"])
def test_only_lf_breaks_a_line(tmp_path: Path, mark: str) -> None:
    assert read(write(tmp_path, f"a{mark}b\n"), "line") == [f"a{mark}b"]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("Съешь ещё этих мягких французских булок", id="Cyrillic"),
        pytest.param("吾輩は猫である。名前はまだ無い。", id="Japanese"),
        pytest.param("نص حكيم له سر قاطع", id="Arabic"),
        pytest.param("हिन्दी में क्षत्रिय", id="Devanagari"),
        pytest.param("👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 𝔊𝔓𝔗", id="emoji"),
        pytest.param("e\u0301 is not \u00e9, \u1e9b\u0323 ﬁ Å", id="not normalised"),
        pytest.param("zero\u200bwidth \u200fmarks\u00ad", id="invisible"),
    ],
)
@pytest.mark.parametrize("mode", MODES)
def test_text_of_any_script_is_unchanged(tmp_path: Path, mode: str, content: str) -> None:
    assert read(write(tmp_path, content), mode) == [content]


# ---- long examples ----


@pytest.mark.parametrize(
    ("mode", "content"),
    [
        pytest.param("line", "some words " * 500, id="line"),
        pytest.param("paragraph", "some words " * 500, id="paragraph of one line"),
        pytest.param("paragraph", "some\nwords\n" * 500, id="paragraph of many lines"),
        pytest.param("file", "some words " * 500, id="file of one line"),
        pytest.param("file", "some\nwords\n\n" * 500, id="file of many lines"),
    ],
)
def test_long_examples_are_split_into_bounded_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, content: str
) -> None:
    monkeypatch.setattr(plain_text, "PIECE_CHARACTERS", 50)
    [parts] = pieces_by_example(write(tmp_path, content), mode)
    assert max(map(len, parts)) < 3 * 50


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("separator", [" ", "\n"])
def test_a_file_larger_than_memory_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, separator: str
) -> None:
    monkeypatch.setattr(plain_text, "PIECE_CHARACTERS", 1000)
    path = write(tmp_path, f"words{separator}" * 50_000)
    tracemalloc.start()
    try:
        characters = sum(len(piece.text) for piece in pieces_of(path, mode))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert characters >= 250_000
    assert peak < 150_000


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("line", ["one two six", "ten", "end"]),
        ("paragraph", ["one two six\nten", "end"]),
        ("file", ["one two six\nten\n\nend\n"]),
    ],
)
def test_only_the_last_piece_ends_an_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, expected: list[str]
) -> None:
    monkeypatch.setattr(plain_text, "PIECE_CHARACTERS", 4)
    examples = pieces_by_example(write(tmp_path, "one two six\nten\n\nend\n"), mode)
    assert ["".join(parts) for parts in examples] == expected
    assert len(examples[0]) > 1


@pytest.mark.parametrize("mode", ["line", "paragraph"])
def test_a_very_long_line_of_white_space_is_blank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    monkeypatch.setattr(plain_text, "PIECE_CHARACTERS", 4)
    assert read(write(tmp_path, "a b\n" + " \t" * 50 + "\nc\n"), mode) == ["a b", "c"]


@pytest.mark.parametrize("mode", MODES)
def test_a_very_long_word_is_not_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    monkeypatch.setattr(plain_text, "PIECE_CHARACTERS", 4)
    content = f"a {'x' * 99} b {'語' * 99}"
    assert read(write(tmp_path, content), mode) == [content]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("character", ["語", " ", "\n"])
def test_text_without_words_is_read_in_linear_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, character: str
) -> None:
    """Counts calls, not seconds: four times the text may take about four times the calls, not sixteen."""
    monkeypatch.setattr(plain_text, "PIECE_CHARACTERS", 10)

    def calls(characters: int) -> int:
        path = write(tmp_path, character * characters)
        events: list[str] = []
        sys.setprofile(lambda _frame, event, _argument: events.append(event))
        try:
            list(pieces_of(path, mode))
        finally:
            sys.setprofile(None)
        return len(events)

    assert calls(1000) < 6 * calls(250)


SPACES = [" "] * 6 + ["\n"] * 4 + ["\r\n", "\r", "\t", "\f", "\x85", "\xa0", "\u2003", "\u2028", "\u3000"]
WORDS = ["the", "it's", "'", "!?", "12", "x1", "Ärger", "猫である", "🦊", "e\u0301", "\u200b", "<|endoftext|>"]


def random_text(rng: random.Random) -> str:
    """Return words with runs of white space between, before and after them."""
    stretches = []
    for _ in range(rng.randrange(1, 12)):
        stretches += rng.choices(SPACES, k=rng.choice((0, 1, 1, 2, 5)))
        stretches += rng.choices(WORDS, k=rng.choice((0, 1, 1, 2)))
    return "".join(stretches) + rng.choice(("", " ", "\n", " \n\n"))


def split_by_hand(content: str, mode: str) -> list[str]:
    """Return the examples of a text, by a plain implementation of the three modes."""
    content = content.replace("\r\n", "\n")
    if mode == "file":
        return [content] if content.strip() else []
    lines = content.split("\n")
    if mode == "line":
        return [line for line in lines if line.strip()]
    return ["\n".join(group) for full, group in groupby(lines, lambda line: bool(line.strip())) if full]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_no_long_example_loses_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, end: str) -> None:
    """No piece is cut before the line break that ends an example: the next piece would look like another example."""
    contents = ["a b\n\nc d\n", "aa bb cc\n\nd\n", "aa\nbb\ncc\n\nd\n\n\ne f\n", "aaaa bbbb\n", "ab\ncd\n\n"]
    for content in contents:
        path = write(tmp_path, content.replace("\n", end))
        for size in range(1, 12):
            monkeypatch.setattr(plain_text, "PIECE_CHARACTERS", size)
            found, examples = scan(path, mode, "train_file"), [""]
            for piece in found.pieces():
                examples[-1] += piece.text
                if piece.ends:
                    examples.append("")
            assert examples == [*split_by_hand(content, mode), ""], (content, size)
            assert found.examples == len(examples) - 1


def test_documents_over_a_mebibyte_are_one_example_each(tmp_path: Path) -> None:
    document = ("word " * 220_000).strip()
    assert scan(write(tmp_path, f"{document}\n\n{document}\n\nshort\n"), "paragraph", "train_file").examples == 3
    line = "a" * (plain_text.PIECE_CHARACTERS - 1)
    assert scan(write(tmp_path, f"{line}\r\nshort\r\n"), "line", "train_file").examples == 2


@pytest.fixture(scope="module")
def spaces_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    """A tokenizer with tokens for runs of white space, so that a cut through a run changes the ids."""
    rng = random.Random(0)
    path = write(tmp_path_factory.mktemp("spaces"), "".join(random_text(rng) for _ in range(500)))
    source, _ = plan_sources(TrainingOptions(train_file=str(path), examples="file", validation_split=0))
    tokenizer = train_tokenizer(source, 600)
    for run in ("  ", "\n\n", " \n", "!?", " the"):
        assert len(tokenizer.encode(run)) == 1
    return tokenizer


@pytest.mark.parametrize("mode", MODES)
def test_pieces_join_to_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    rng = random.Random(1)
    for _ in range(300):
        content = random_text(rng)
        monkeypatch.setattr(plain_text, "PIECE_CHARACTERS", rng.choice((1, 2, 3, 5, 8, 20)))
        assert read(write(tmp_path, content), mode) == split_by_hand(content, mode), repr(content)


@pytest.mark.parametrize("mode", MODES)
def test_pieces_have_the_same_ids_as_the_whole_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spaces_tokenizer: TextTokenizer, mode: str
) -> None:
    rng = random.Random(2)
    cuts = 0
    for _ in range(300):
        content = random_text(rng)
        monkeypatch.setattr(plain_text, "PIECE_CHARACTERS", rng.choice((1, 2, 3, 5, 8, 20)))
        for parts in pieces_by_example(write(tmp_path, content), mode):
            separately = [token for part in parts for token in spaces_tokenizer.encode(part)]
            assert separately == spaces_tokenizer.encode("".join(parts)), parts
            cuts += len(parts) - 1
    assert cuts > 300


@pytest.mark.parametrize("separator", ["\x1c", "\x1d", "\x1e", "\x1f"])
def test_no_cut_before_control_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, separator: str) -> None:
    """These four are white space for Python, but the tokenizer joins them with the character before."""
    path = write(tmp_path, f"!{separator} " * 20)
    source, _ = plan_sources(TrainingOptions(train_file=str(path), validation_split=0))
    tokenizer = train_tokenizer(source, 300)
    monkeypatch.setattr(plain_text, "PIECE_CHARACTERS", 2)
    [parts] = pieces_by_example(write(tmp_path, f"!{separator}a"), "line")
    separately = [token for part in parts for token in tokenizer.encode(part)]
    assert separately == tokenizer.encode(f"!{separator}a")


# ---- scan ----


def refusal(path: Path, mode: str = "line") -> UserError:
    """Return the error for a file, after checking that it names the option and the path."""
    with pytest.raises(UserError) as caught:
        scan(path, mode, "validation_file")
    assert caught.value.option == "validation_file"
    assert str(path) in caught.value.message
    return caught.value


@pytest.mark.parametrize(("mode", "examples"), [("line", 3), ("paragraph", 2), ("file", 1)])
def test_scan_counts_examples_and_bytes(tmp_path: Path, mode: str, examples: int) -> None:
    found = scan(write(tmp_path, "Ä\n\n \nb\nc"), mode, "train_file")
    assert (found.examples, found.bytes) == (examples, 9)


@pytest.mark.parametrize("mode", MODES)
def test_scan_counts_a_long_example_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    monkeypatch.setattr(plain_text, "PIECE_CHARACTERS", 4)
    assert scan(write(tmp_path, "a very long example"), mode, "train_file").examples == 1


def test_missing_file_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "nowhere.txt").message


def test_directory_is_refused(tmp_path: Path) -> None:
    assert "is a directory" in refusal(tmp_path).message


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("content", "size"),
    [
        pytest.param(b"", 0, id="empty"),
        pytest.param(b" \n\t\r\n\n  ", 8, id="white space"),
        pytest.param("\u3000\n\xa0".encode(), 6, id="wide white space"),
        pytest.param(b"\xef\xbb\xbf", 3, id="byte-order mark"),
    ],
)
def test_file_without_text_is_refused(tmp_path: Path, mode: str, content: bytes, size: int) -> None:
    message = refusal(write(tmp_path, content), mode).message
    assert "holds no text" in message
    assert f"{size} bytes" in message


@pytest.mark.parametrize("chunk", [1, 4, 5, 1 << 20])
@pytest.mark.parametrize(("content", "offset"), [(b"\0", 0), (b"abcd\0ef\0", 4), ("é€🦊".encode() + b"\0", 9)])
def test_binary_file_error_names_the_zero_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, offset: int, chunk: int
) -> None:
    monkeypatch.setattr(utf8, "CHUNK_BYTES", chunk)
    message = refusal(write(tmp_path, content)).message
    assert "binary" in message
    assert re.search(rf"\bbyte {offset}\b", message)


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 5, 7, 1 << 20])
@pytest.mark.parametrize(
    ("content", "offset"),
    [
        pytest.param(b"abcdefgh\xff", 8, id="no UTF-8 byte"),
        pytest.param("été".encode("latin-1"), 0, id="Latin-1"),
        pytest.param("é€🦊".encode() + b"\x80", 9, id="after characters of 2, 3 and 4 bytes"),
        pytest.param(b"\xef\xbb\xbfab\xe9\n", 5, id="after a byte-order mark"),
        pytest.param("a€".encode() + b"\xe2\x82(b", 4, id="broken off by a letter"),
        pytest.param("ab€".encode()[:-1], 2, id="ends inside 3 bytes"),
        pytest.param("abc🦊".encode()[:-1], 3, id="ends inside 4 bytes"),
        pytest.param(b"abc\xf0", 3, id="ends after the first of 4 bytes"),
        pytest.param(b"a\xc0\xaf", 1, id="overlong"),
        pytest.param(b"abc\xed\xa0\x80", 3, id="surrogate"),
        pytest.param(b"abcdef\xf4\x90\x80\x80", 6, id="beyond Unicode"),
    ],
)
def test_encoding_error_names_the_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, offset: int, chunk: int
) -> None:
    monkeypatch.setattr(utf8, "CHUNK_BYTES", chunk)
    message = refusal(write(tmp_path, content)).message
    assert "not UTF-8" in message
    assert re.search(rf"\bbyte {offset}\b", message)


@pytest.mark.parametrize("chunk", range(1, 6))
def test_characters_split_between_chunks_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(utf8, "CHUNK_BYTES", chunk)
    found = scan(write(tmp_path, "é€🦊\n🦊€é\n"), "line", "train_file")
    assert (found.examples, found.bytes) == (2, 20)


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    """Training reads a file several times, and a pipe can be read once."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="is a pipe or a device"):
        scan(tmp_path / "pipe", "line", "train_file")
