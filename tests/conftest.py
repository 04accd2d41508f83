"""Small models and texts that the tests share. Nothing here needs a network or a GPU."""

from __future__ import annotations

import atexit
import ctypes
import gc
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# Set before any library reads them: no test may touch the user's caches or the network.
os.environ["HF_HOME"] = os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="gpt2tg-tests-")
os.environ["HF_HUB_OFFLINE"] = "1"
# What `--device auto` is here and in the programs that tests start: on a machine with a GPU, models would be computed
# there in fp16 and compared with those of the CPU. The tests that need a GPU name it.
os.environ["GPT2TG_DEVICE"] = "cpu"
# Here and in the programs that tests start: the models are tiny, and more threads would only wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"
# Under nohup it is ignored, also by the programs that tests start; what they do on a closed terminal is tested.
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

import accelerate.utils.memory
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from gpt2tg.checkpoint.config import read_shape
from gpt2tg.checkpoint.shape import ModelShape
from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.checkpoint.weights import read_weights
from gpt2tg.engine.cpu import compiler, kernels
from gpt2tg.engine.model import GPT2
from gpt2tg.options import TrainingOptions
from gpt2tg.training.data.sources import plan_sources
from gpt2tg.training.model.new_tokenizer import train_tokenizer, transformers_tokenizer
from gpt2tg.training.output import records
from gpt2tg.training.output.locks import LOCK_FILE

# The libraries are garbage of no collection: each would look through a million of their objects. Accelerate asks for
# two in each training run.
gc.collect()
gc.freeze()
accelerate.utils.memory.gc = SimpleNamespace(collect=lambda: 0)

atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)

FABLES = [
    "The owl sold silence by the ounce and kept the scales in a quiet room.",
    "A fox counted the stars twice and found one missing, and slept badly.",
    "Two bells argued about the hour until the rope was cut.",
    "The baker's ghost still rises before the bread does.",
    "Nobody told the river it was early, so it arrived.",
    "An ink-cat sat upon the map and the duke lost a lake.",
]

# config.json of the model in `model_dir`, as far as it decides what is computed.
CONFIG = {"model_type": "gpt2", "vocab_size": 300, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}


# The files whose tests take longest start first: at the end, one worker would wait for another.
LONGEST = ("test_docs.py", "test_processes.py", "test_interruption.py", "test_resuming.py", "test_terminal.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Benchmarks use all cores. Beside another worker, two threads that wait for each other are many times slower."""
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def without_pictures(request: pytest.FixtureRequest) -> Iterator[None]:
    """Runs draw no loss.png, which takes longer than all their steps, except in modules that set DRAWS_PICTURES."""
    with pytest.MonkeyPatch.context() as patch:
        if not getattr(request.module, "DRAWS_PICTURES", False):
            patch.setattr(records, "draw_losses", lambda history, path, title: path.touch())
        yield


@pytest.fixture(scope="session")
def forked_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stand-in for `python` that runs programs in forks of one process with all libraries imported."""
    fork_server = pytest.importorskip("fork_server", reason="needs fork and terminals", exc_type=ImportError)
    folder, is_worker = tmp_path_factory.getbasetemp(), "PYTEST_XDIST_WORKER" in os.environ
    # The workers share a server. It ends with the process that started them.
    return fork_server.stand_in(folder.parent if is_worker else folder, os.getppid() if is_worker else os.getpid())


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six lines of text."""
    path = tmp_path_factory.mktemp("text") / "fables.txt"
    path.write_text("\n".join(FABLES) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tokenizer(text_file: Path) -> TextTokenizer:
    """A byte-level tokenizer of 300 tokens; `<|endoftext|>` is 0."""
    source, _ = plan_sources(TrainingOptions(train_file=str(text_file), validation_split=0))
    return train_tokenizer(source, 300)


def random_ids(count: int, seed: int = 0, vocabulary: int = 300) -> list[int]:
    return torch.randint(0, vocabulary, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def random_model(seed: int = 0, **config: object) -> GPT2LMHeadModel:
    """A small GPT-2 of transformers with weights large enough to make its choices clear."""
    torch.manual_seed(seed)
    settings = dict(vocab_size=300, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(GPT2Config(**{**settings, "initializer_range": 0.3, **config}))
    return model.eval()


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory, tokenizer: TextTokenizer) -> Path:
    """A checkpoint as transformers writes it: a random model of 64 positions and its tokenizer."""
    directory = tmp_path_factory.mktemp("model")
    random_model().save_pretrained(directory)
    transformers_tokenizer(tokenizer, 64).save_pretrained(directory)
    return directory


@pytest.fixture
def checkpoint(model_dir: Path, tmp_path: Path) -> Path:
    """A copy of the model's directory that a test may change."""
    return shutil.copytree(model_dir, tmp_path / "model")


# A chat template that needs few tokens.
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] + ':' + m.content + (eos_token if m.role == 'assistant' else '') + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)


@pytest.fixture(scope="session")
def chat_dir(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same checkpoint with a chat template."""
    directory = shutil.copytree(model_dir, tmp_path_factory.mktemp("chat") / "model")
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    return directory


@pytest.fixture(scope="session")
def shape(model_dir: Path) -> ModelShape:
    return read_shape(model_dir)


@pytest.fixture(scope="session")
def reference(model_dir: Path) -> GPT2LMHeadModel:
    """The same model, computed by transformers."""
    return GPT2LMHeadModel.from_pretrained(model_dir, local_files_only=True).eval()


@pytest.fixture(scope="session")
def gpt2(model_dir: Path) -> GPT2:
    """The same model, computed by us."""
    return read_gpt2(model_dir)


@pytest.fixture(scope="session")
def oracle_counts() -> Iterator[Counter]:
    """Comparisons with transformers by class and outcome; printed when the session ends."""
    counts: Counter = Counter()
    yield counts
    for (kind, outcome), number in sorted(counts.items()):
        print(f"oracle: {kind}: {number} {outcome}", file=sys.stderr)


def write_config(directory: Path, config: Any, name: str = "config.json") -> Path:
    """Write a config, a string as it is; return the directory, which is made if it is missing."""
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(config if isinstance(config, str) else json.dumps(config), encoding="utf-8")
    return directory


def modification_times(directory: str | Path) -> dict[Path, int]:
    """Return when each file was last written, but for the lock, which some versions of filelock write to."""
    return {path: path.stat().st_mtime_ns for path in Path(directory).rglob("*") if path.name != LOCK_FILE}


def read_gpt2(directory: Path, device: str = "cpu", precision: str = "fp32") -> GPT2:
    shape = read_shape(directory)
    return GPT2(read_weights(directory, shape), shape, torch.device(device), precision)


def has_avx2() -> bool:
    """Whether the processor can run the kernels that are compiled for AVX2."""
    information = Path("/proc/cpuinfo")
    return information.exists() and {"avx2", "fma", "f16c"} <= set(information.read_text(encoding="utf-8").split())


def has_neon() -> bool:
    """Whether the processor is one with 64-bit Arm instructions."""
    return platform.machine() in ("aarch64", "arm64")


def kernels_here() -> kernels.Kernels:
    """The compiled kernels. A test that needs them is skipped only where they cannot be; where gcc and the processor
    are there and they are missing nevertheless, it fails."""
    found = kernels.load()
    if found is not None:
        return found
    if os.environ.get(kernels.SWITCH) != "0" and (has_avx2() or has_neon()) and shutil.which("gcc"):
        pytest.fail("there is gcc and a processor for the kernels, but they could not be compiled or loaded")
    pytest.skip("the kernels need gcc and a processor with AVX2 or NEON, and are not switched off")


def compiled_for(processor: str, directory: Path) -> kernels.Kernels:
    """The kernels as they are compiled on a machine with an older CPU."""
    path, found = directory / "kernels.so", compiler.find_compiler()
    assert found
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "FLAGS", (*compiler.FLAGS, f"-march={processor}"))
        compiler.compile_library(found, path)
    return kernels.Kernels(ctypes.CDLL(str(path)))


@pytest.fixture(scope="session", params=["native", "avx2"])
def compiled_kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> kernels.Kernels:
    """The kernels for this CPU, and for one without AVX-512."""
    native = kernels_here()  # without a compiler, there are none for another CPU either
    if request.param == "native":
        return native
    if not has_avx2():
        pytest.skip("no processor with AVX2")
    avx2 = compiled_for("haswell", tmp_path_factory.mktemp("avx2"))
    assert avx2.tile == 8
    return avx2


@pytest.fixture
def library(compiled_kernels: kernels.Kernels, monkeypatch: pytest.MonkeyPatch) -> kernels.Kernels:
    """The kernels for each kind of CPU, which models are then made with."""
    monkeypatch.setattr(kernels, "load", lambda: compiled_kernels)
    return compiled_kernels
