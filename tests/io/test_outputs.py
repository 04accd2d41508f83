"""Output files and streams: devices, pipes, links, file modes, full disks, closed streams."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import generate_from_finetuned
import text_generation_demo
from gpt2tg.errors import RunError, UserError
from gpt2tg.io import outputs
from gpt2tg.io.outputs import append_whole, check_file, write_whole

ROOT = Path(__file__).parents[2]

Capture = pytest.CaptureFixture[str]

FULL = Path("/dev/full")
pytestmark = pytest.mark.skipif(not FULL.exists(), reason="needs the devices of Linux")

FORMS = pytest.mark.parametrize("form", ["text", "jsonl"])
SOURCES = pytest.mark.parametrize(
    "source", [["--prompt", "The owl"], ["--score", "lines"], ["--candidates", "3"]], ids=lambda words: words[0]
)


def run(model_dir: Path, *words: object) -> int:
    flags = ["--model_path", str(model_dir), "--max_new_tokens", "5", "--decoding", "greedy"]
    return generate_from_finetuned.main([*flags, *map(str, words)])


@pytest.fixture
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lines") / "lines.txt"
    path.write_text("The owl\nA fox\n", encoding="utf-8")
    return path


def named(source: list[str], lines: Path) -> list[str]:
    return [str(lines) if word == "lines" else word for word in source]


def read_in_background(pipe: Path) -> Callable[[], str]:
    """Read a pipe to its end in a thread; the returned function waits for it and returns the text."""
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(pipe.read_text(encoding="utf-8")), daemon=True)
    thread.start()

    def result() -> str:
        thread.join(20)
        return found[0]

    return result


# --- devices, pipes and descriptors ----------------------------------------------------------------------------------


@FORMS
@SOURCES
@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_full_device_is_named_and_not_replaced(
    model_dir: Path, tmp_path: Path, lines: Path, form: str, source: list[str], overwrite: list[str], capsys: Capture
) -> None:
    link = tmp_path / "link"
    link.symlink_to(FULL)
    assert run(model_dir, *named(source, lines), "--output", link, "--format", form, *overwrite) == 1
    assert capsys.readouterr().err.endswith(f"error: cannot write {link}: No space left on device\n")
    assert [path.name for path in tmp_path.iterdir()] == ["link"]
    assert os.readlink(link) == str(FULL)
    assert stat.S_ISCHR(FULL.stat().st_mode)


@FORMS
@SOURCES
def test_null_device_needs_no_overwrite(model_dir: Path, lines: Path, form: str, source: list[str]) -> None:
    assert run(model_dir, *named(source, lines), "--output", os.devnull, "--format", form) == 0
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_pipe_gets_the_records_of_all_prompts(
    model_dir: Path, tmp_path: Path, lines: Path, overwrite: list[str], capsys: Capture
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    came = read_in_background(pipe)
    words = ["--prompts_file", lines, "--batch_size", "1", "--output", pipe, "--format", "jsonl"]
    assert run(model_dir, *words, *overwrite) == 0
    assert [json.loads(line)["prompt"] for line in came().splitlines()] == ["The owl", "A fox"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_pipe_gets_the_text(model_dir: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    came = read_in_background(pipe)
    assert run(model_dir, "--prompt", "The owl", "--output", pipe) == 0
    assert came().startswith("The owl")


def test_pipe_is_announced_before_the_model_is_read(tmp_path: Path, capsys: Capture) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert run(tmp_path / "no model", "--output", pipe) == 2
    first, *_ = capsys.readouterr().err.splitlines()
    assert first == f"{pipe} is a pipe: writing waits until something reads it"


@FORMS
def test_reader_that_closes_its_pipe_is_no_error(model_dir: Path, form: str, capsys: Capture) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    assert run(model_dir, "--prompt", "The owl", "--output", f"/dev/fd/{writing}", "--format", form) == 0
    os.close(writing)
    assert capsys.readouterr().err == ""


def test_open_descriptor_is_written_at_its_position(tmp_path: Path) -> None:
    """As with `>> log`: the old content stays, and so does the file itself."""
    log = tmp_path / "log"
    log.write_text("before\n")
    inode = log.stat().st_ino
    with log.open("a") as file:
        name = Path(f"/dev/fd/{file.fileno()}")
        check_file(name, "output", pytest.fail)
        write_whole(name, "story\n")
    assert log.read_text() == "before\nstory\n"
    assert log.stat().st_ino == inode


def test_dev_stdout_is_stdout(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    code = "import sys; from gpt2tg.io.outputs import *; check_file(Path('/dev/stdout'), 'output', print); "
    code += "print('printed'); write_whole(Path('/dev/stdout'), 'story\\n')"
    with log.open("a") as file:
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=file, check=True)
    assert log.read_text() == "before\nprinted\nstory\n"


@FORMS
def test_dash_is_stdout(
    form: str, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(model_dir, "--prompt", "The owl", "--format", form, "--output", "-") == 0
    to_dash = capfd.readouterr().out
    assert run(model_dir, "--prompt", "The owl", "--format", form) == 0
    assert to_dash == capfd.readouterr().out != ""
    assert list(tmp_path.iterdir()) == []


def test_descriptor_open_for_reading_is_refused_first(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    with (tmp_path / "x").open() as file, pytest.raises(UserError, match="Bad file descriptor"):
        check_file(Path(f"/dev/fd/{file.fileno()}"), "output", pytest.fail)
    with pytest.raises(UserError, match="cannot be written"):
        check_file(Path("/dev/fd/987"), "output", pytest.fail)


# --- links, modes and names ------------------------------------------------------------------------------------------


@FORMS
@SOURCES
def test_link_is_followed_and_the_file_keeps_its_mode(
    model_dir: Path, tmp_path: Path, lines: Path, form: str, source: list[str]
) -> None:
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "target", tmp_path / "link"
    target.write_text("mine")
    target.chmod(0o624)
    link.symlink_to("there/target")
    words = [*named(source, lines), "--output", link, "--format", form]
    assert run(model_dir, *words) == 2
    assert target.read_text() == "mine"
    assert run(model_dir, *words, "--overwrite") == 0
    assert link.is_symlink()
    assert target.read_text() != "mine"
    assert stat.S_IMODE(target.stat().st_mode) == 0o624
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["link", "target", "there"]


@FORMS
@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_dangling_link_creates_its_target(model_dir: Path, tmp_path: Path, form: str, overwrite: list[str]) -> None:
    link = tmp_path / "link"
    link.symlink_to("new")
    assert run(model_dir, "--prompt", "The owl", "--output", link, "--format", form, *overwrite) == 0
    assert link.is_symlink()
    assert "The owl" in (tmp_path / "new").read_text()


def test_new_file_has_the_default_mode(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    write_whole(tmp_path / "story.txt", "x")
    assert (tmp_path / "story.txt").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_owner_of_a_file_stays(tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root may give files away")
    story = tmp_path / "story.txt"
    story.write_text("old")
    os.chown(story, 1234, 4321)
    story.chmod(0o4640)
    write_whole(story, "new")
    assert (story.stat().st_uid, story.stat().st_gid, stat.S_IMODE(story.stat().st_mode)) == (1234, 4321, 0o4640)


@pytest.mark.parametrize("name", ["a" * 255, "é" * 127, ".hidden"])
def test_any_name_that_the_system_accepts_is_written(model_dir: Path, tmp_path: Path, name: str) -> None:
    for overwrite in ([], ["--overwrite"]):
        assert run(model_dir, "--prompt", "The owl", "--output", tmp_path / name, *overwrite) == 0
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_hard_links_produce_a_notice(tmp_path: Path) -> None:
    story = tmp_path / "story.txt"
    story.write_text("old")
    os.link(story, tmp_path / "other.txt")
    said: list[str] = []
    check_file(story, "output", said.append, may_replace=True)
    assert said == [f"{story} has 1 other name (hard links), which keep the old content"]
    write_whole(story, "new")
    assert (tmp_path / "other.txt").read_text() == "old"


@FORMS
@pytest.mark.parametrize(
    "where", [".", "no/file", "file/x", "loop", "a" * 256, "/proc/none", "/proc/self/none", "sock"]
)
def test_unwritable_output_is_refused_before_the_model(tmp_path: Path, form: str, where: str, capsys: Capture) -> None:
    import socket

    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as server, pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)  # the names of sockets are short
        server.bind("sock")
        before = sorted(tmp_path.iterdir())
        for overwrite in ([], ["--overwrite"]):
            assert run(tmp_path / "no model", "--output", where, "--format", form, *overwrite) == 2
            err = capsys.readouterr().err
            assert f"error: --output {where} cannot be written: " in err
            assert err.count("\n") == 1
        assert sorted(tmp_path.iterdir()) == before


def test_report_is_checked_and_written_like_any_output(model_dir: Path, tmp_path: Path, capsys: Capture) -> None:
    table, page = tmp_path / "table.csv", tmp_path / "page.html"
    table.symlink_to(FULL)
    page.write_text("old")
    page.chmod(0o604)
    words = ["--model_path", str(model_dir), "--compare", "--strategies", "greedy", "--max_new_tokens", "5"]
    words += ["--prompt", "The owl", "--output", str(table), "--report", str(page)]
    assert text_generation_demo.main(words) == 2
    assert f"--report {page} exists already" in capsys.readouterr().err
    assert text_generation_demo.main([*words, "--overwrite"]) == 1
    assert f"cannot write {table}: No space left on device" in capsys.readouterr().err
    table.unlink()
    assert text_generation_demo.main([*words, "--overwrite"]) == 0
    assert stat.S_IMODE(page.stat().st_mode) == 0o604
    assert page.read_text() != "old"


# --- full disks ------------------------------------------------------------------------------------------------------


# Every file takes 1,000 bytes and no more.
SMALL = (
    "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); "
    "from gpt2tg.io.outputs import *; {how}(Path(sys.argv[1]), 'x' * 1500)"
)


@pytest.mark.parametrize("how", ["write_whole", "append_whole"])
@pytest.mark.parametrize("held", [None, "what it held\n"])
def test_full_disk_leaves_files_as_they_were(tmp_path: Path, how: str, held: str | None) -> None:
    path = tmp_path / "story.txt"
    if held is not None or how == "append_whole":
        path.write_text(held or "")
    command = [sys.executable, "-c", SMALL.format(how=how), str(path)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert f"RunError: cannot write {path}: File too large" in found.stderr
    assert not path.exists() if held is None and how == "write_whole" else path.read_text() == (held or "")
    assert [file.name for file in tmp_path.iterdir()] in ([], ["story.txt"])


def test_interrupted_write_leaves_no_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(outputs, "write_all", stop)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "story.txt", "x")
    assert not list(tmp_path.iterdir())


def test_file_is_replaced_only_after_the_first_record(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("a diary")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(outputs, "write_all", full)
    assert run(model_dir, "--output", out, "--format", "jsonl", "--overwrite") == 1
    assert f"cannot write {out}: No space left on device" in capsys.readouterr().err
    assert out.read_text() == "a diary"
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=f"cannot write {tmp_path}/no/file: No such file"):
        append_whole(tmp_path / "no" / "file", "x")


# --- stdout and stderr -----------------------------------------------------------------------------------------------

SPEAKER = """
import sys
from gpt2tg import cli
from gpt2tg.io.streams import write_out

def body(given):
    cli.notice("talk")
    for _ in range(3000):
        write_out("product\\n")
    with open(sys.argv[1], "w") as file:
        file.write("mine")

sys.exit(cli.run(cli.Parser(prog="x.py", description="", examples=""), body, []))
"""


def speak(tmp_path: Path, redirected: str) -> tuple[int, str, str]:
    """Run a script with redirected streams; return exit code, stdout and stderr."""
    command = f'"$0" -c "$1" "$2" {redirected}'
    words = ["bash", "-c", command, sys.executable, SPEAKER, str(tmp_path / "file")]
    found = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    return found.returncode, found.stdout, found.stderr


@pytest.mark.parametrize("redirected", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", "2>/dev/full", "<&-"])
def test_closed_streams_end_quietly(tmp_path: Path, redirected: str) -> None:
    code, out, err = speak(tmp_path, redirected)
    assert code == 0
    assert out == ("" if ">&-" in redirected.replace("2>&-", "") else "product\n" * 3000)
    assert err == ("" if "2>" in redirected else "talk\n")
    assert (tmp_path / "file").read_text() == "mine"  # and nothing else has got there


@pytest.mark.parametrize("redirected", ["| head -n 1", "2>&1 | head -n 1"])
def test_closed_pipe_ends_quietly(tmp_path: Path, redirected: str) -> None:
    code, out, err = speak(tmp_path, f"{redirected}; exit ${{PIPESTATUS[0]}}")
    assert code == 0
    assert out in ("product\n", "talk\n")
    assert err in ("", "talk\n")


def test_full_stdout_is_named(tmp_path: Path) -> None:
    code, _, err = speak(tmp_path, "> /dev/full")
    assert code == 1
    assert err == "talk\nx.py: error: cannot write to standard output: No space left on device\n"
