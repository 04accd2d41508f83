"""Which files a folder or a pattern stands for, and files that are not plain text."""

from __future__ import annotations

import gzip
import os
import subprocess
import zipfile
from pathlib import Path

import pytest

from gpt2tg.errors import UserError
from gpt2tg.options import TrainingOptions
from gpt2tg.training.data.corpus import Corpus, scan_corpus
from gpt2tg.training.data.file_pass import TextFormat
from gpt2tg.training.data.sources import plan_sources


def scan(*names: str | Path) -> Corpus:
    return scan_corpus(tuple(map(str, names)), TextFormat("line"), "train_file")


def texts_of(found: Corpus) -> list[str]:
    return [piece.text for piece in found.pieces()]


def write(path: Path, text: str = "not this\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# ---- folders and patterns ----


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder after some work: texts among hidden files, backups and a virtual environment."""
    write(tmp_path / "a.txt", "from a\n")
    write(tmp_path / "below" / "b.md", "from b\n")
    for hidden in (".git/x.txt", ".ipynb_checkpoints/a-checkpoint.txt", ".a.txt.swp", "._a.txt", "below/.#b.md"):
        write(tmp_path / hidden)
    for backup in ("a.txt~", "a~.txt", "a.bak", "a.bak.txt", "#a.txt#", "below/~$b.md", "a.txt.orig"):
        write(tmp_path / backup)
    write(tmp_path / "venv" / "pyvenv.cfg")
    write(tmp_path / "venv" / "licence.txt")
    return tmp_path


def test_hidden_files_and_backups_are_skipped(project: Path) -> None:
    found = scan(project)
    assert texts_of(found) == ["from a", "from b"]
    assert any("skipped 7 files named like a backup" in notice for notice in found.notices)


def test_backups_that_are_named_are_read(project: Path) -> None:
    assert texts_of(scan(project / "a.bak")) == ["not this"]
    assert texts_of(scan(project / "*.bak")) == ["not this"]


def test_a_pattern_skips_backups(project: Path) -> None:
    assert texts_of(scan(project / "a*")) == ["from a"]


def output_of_a_run(directory: Path) -> None:
    write(directory / "run.json", '{"versions": {"gpt2tg": "1"}}')
    write(directory / "training_log.csv", "step,epoch,loss\n1,0.1,3\n")
    write(directory / "README.md")
    write(directory / "samples.md")
    write(directory / "checkpoint-3" / "merges.txt")


@pytest.mark.parametrize("names", [".", "**/*.*"])
def test_a_folder_is_read_without_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: str) -> None:
    """Skips the output of this run and of others, and any model."""
    monkeypatch.chdir(tmp_path)
    write(Path("texts/a.txt"), "from a\n")
    write(Path("out/notes.md"))
    output_of_a_run(Path("earlier"))
    write(Path("gpt2/config.json"), "{}")
    write(Path("gpt2/merges.txt"))
    write(Path("shards/config.json"), "{}")
    write(Path("shards/model.safetensors.index.json"), "{}")
    write(Path("shards/notes.md"))
    write(Path("bert/config.json"), "{}")
    write(Path("bert/vocab.txt"))
    source, _ = plan_sources(TrainingOptions(train_file=names, output_dir="./out"))
    assert texts_of(source.corpus) == ["from a"]
    assert {notice.removeprefix("skipped ").partition(":")[0] for notice in source.corpus.notices} >= {
        "out",
        "earlier",
        "gpt2",
        "shards",
        "bert",
    }


def test_texts_inside_the_output_directory_may_be_named(tmp_path: Path) -> None:
    write(tmp_path / "out" / "texts" / "a.txt", "from a\n")
    options = TrainingOptions(train_file=str(tmp_path / "out" / "texts"), output_dir=str(tmp_path / "out"))
    assert texts_of(plan_sources(options)[0].corpus) == ["from a"]


def test_the_directory_of_a_run_is_refused(tmp_path: Path) -> None:
    output_of_a_run(tmp_path)
    with pytest.raises(UserError, match="is the output directory of a training run"):
        scan(tmp_path)


def test_a_file_that_is_named_twice_is_read_once(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "from a\n")
    write(tmp_path / "b.txt", "from b\n")
    (tmp_path / "c.txt").symlink_to(path)
    os.link(path, tmp_path / "d.txt")
    found = scan(path, tmp_path / "*.txt", tmp_path)
    assert texts_of(found) == ["from a", "from b"]
    assert any("is read once" in notice for notice in found.notices)


def test_skipped_files_are_reported(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "from a\n")
    write(tmp_path / "b.docx")
    (tmp_path / "c.txt").symlink_to(tmp_path / "nowhere.txt")
    notices = "\n".join(scan(tmp_path).notices)
    assert "skipped 1 file that is not text" in notices
    assert ".docx" in notices
    assert f"skipped {tmp_path / 'c.txt'}: a link to a missing file" in notices


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_without_read_permission_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.txt").chmod(0)
    with pytest.raises(UserError, match="cannot be read: Permission denied"):
        scan(tmp_path / "a.txt")


# ---- what is no plain text ----


@pytest.mark.parametrize(
    "text", ["The owl slept.\n", "Ärger, naïve café\n", "吾輩は猫である。\n名前はまだ無い。一\n", "Привет мир\n"]
)
@pytest.mark.parametrize(
    ("encoding", "name"),
    [
        ("utf-16", "UTF-16"),
        ("utf-32", "UTF-32"),
        ("utf-16-le", "UTF-16LE"),
        ("utf-16-be", "UTF-16BE"),
        ("utf-32-le", "UTF-32LE"),
        ("utf-32-be", "UTF-32BE"),
    ],
)
def test_error_for_utf16_and_utf32_gives_a_working_command(tmp_path: Path, text: str, encoding: str, name: str) -> None:
    """Runs the command, and reads its output."""
    path = tmp_path / "my text.txt"
    path.write_bytes(text.encode(encoding))
    with pytest.raises(UserError, match=f"is {name}, expected UTF-8; convert it with: ") as caught:
        scan(path)
    subprocess.run(caught.value.message.partition("convert it with: ")[2], shell=True, check=True)
    assert texts_of(scan(tmp_path / "my text.utf8.txt")) == text.splitlines()


def pointer(end: str) -> bytes:
    lines = ["version https://git-lfs.github.com/spec/v1", f"oid sha256:{'4d' * 32}", "size 12345", ""]
    return end.join(lines).encode()


@pytest.mark.parametrize("name", ["t.txt", "t.csv", "t.jsonl"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_git_lfs_pointer_is_never_text(tmp_path: Path, name: str, end: str) -> None:
    (tmp_path / name).write_bytes(pointer(end))
    for named in (tmp_path / name, tmp_path):
        with pytest.raises(UserError, match=r"is a Git LFS pointer, not the file itself: .* git lfs pull"):
            scan(named)


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("t.md", gzip.compress(b"The owl slept.", mtime=0), "gzip archive, not plain text: end its name in .gz"),
        ("t.txt", gzip.compress(b"The owl slept.", mtime=0), "gzip"),
        ("t.txt", b"BZh91AY&SY\xc4", "bzip2"),
        ("t.pdf", b"%PDF-1.4\n% plain bytes alone\n", "PDF"),
        ("t.txt", b"{\\rtf1\\ansi The owl slept.}", "RTF"),
        ("t.doc", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1\0", "Word or Excel"),
        ("t.parquet", b"PAR1\x15\x04PAR1", "Parquet"),
        ("t.ipynb", b'{"cells": []}', "write one object per line into a .jsonl"),
    ],
)
def test_errors_name_documents_and_archives(tmp_path: Path, name: str, content: bytes, what: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=what):
        scan(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "inside", "what"),
    [
        ("t.docx", "word/document.xml", "a Word document"),
        ("t.csv", "xl/workbook.xml", "an Excel workbook, not plain text: export it as .csv"),
        ("t.zip", "t.txt", "a ZIP archive, not plain text: unpack it"),
    ],
)
def test_errors_name_zipped_documents(tmp_path: Path, name: str, inside: str, what: str) -> None:
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        archive.writestr(inside, "The owl slept.")
    with pytest.raises(UserError, match=what):
        scan(tmp_path / name)


def test_several_files_without_text_are_refused_together(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "\n")
    write(tmp_path / "b.txt", " \n")
    with pytest.raises(UserError, match=r"none of 2 files holds text \(3 bytes\): give a file with at least one"):
        scan(tmp_path / "a.txt", tmp_path / "b.txt")
