"""Write one random GPT-2 of each shape in the file format of each rival, once, into a cache folder.

The weights are those of a new transformers model with a fixed seed. Speed does not depend on training, and all rivals
read the same numbers, so that their greedy texts can be compared.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run from a checkout, nothing installed

EXPORTER = ROOT / ".venv-export"
"""The environment of optimum-intel."""
CACHE = Path(tempfile.gettempdir()) / "gpt2tg-benchmarks"
SEED = 0
VOCABULARY, POSITIONS = 50257, 1024
SHAPES = {
    "gpt2": dict(n_embd=768, n_layer=12, n_head=12),
    "gpt2-medium": dict(n_embd=1024, n_layer=24, n_head=16),
}
LARGE_SHAPES = {
    "gpt2-large": dict(n_embd=1280, n_layer=36, n_head=20),
    "gpt2-xl": dict(n_embd=1600, n_layer=48, n_head=25),
}
"""For a GPU; on a CPU they take minutes."""
LLAMA_TYPES = ("F32", "F16", "Q8_0")


def checkpoint(shape: str, cache: Path = CACHE) -> Path:
    """Return a checkpoint of this shape as transformers saves it, with a placeholder tokenizer.

    Args:
        shape: a key of SHAPES or LARGE_SHAPES, or `gpt2-tiny`, the bundled model, which is trained.
    """
    from gpt2tg.checkpoint.find import BUNDLED_DIRECTORY

    if shape == "gpt2-tiny":
        return BUNDLED_DIRECTORY
    return _once(cache / shape / "transformers", lambda directory: _write_checkpoint(shape, directory))


def positions(shape: str, cache: Path = CACHE) -> int:
    """Return the context length of the model."""
    return json.loads((checkpoint(shape, cache) / "config.json").read_text(encoding="utf-8"))["n_positions"]


def _write_checkpoint(shape: str, directory: Path) -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from gpt2tg.checkpoint.find import BUNDLED_DIRECTORY
    from gpt2tg.checkpoint.tokenizer_loading import load_tokenizer
    from gpt2tg.training.model.new_tokenizer import transformers_tokenizer

    torch.manual_seed(SEED)
    config = GPT2Config(bos_token_id=0, eos_token_id=0, **(SHAPES | LARGE_SHAPES)[shape])
    if torch.cuda.is_available():  # gpt2-xl takes seconds instead of a minute, and half the disk
        with torch.device("cuda"):
            GPT2LMHeadModel(config).half().save_pretrained(directory)
    else:
        GPT2LMHeadModel(config).save_pretrained(directory)
    transformers_tokenizer(load_tokenizer(BUNDLED_DIRECTORY, VOCABULARY, [0]), POSITIONS).save_pretrained(directory)


def ctranslate2(source: Path) -> Path:
    """Return the checkpoint for CTranslate2, in fp32; its runtime quantizes while it loads."""

    def convert(directory: Path) -> None:
        from ctranslate2.converters import TransformersConverter
        from transformers import AutoTokenizer

        class Converter(TransformersConverter):
            def load_tokenizer(self, _class: type, path: str, **_: object) -> object:
                tokenizer = AutoTokenizer.from_pretrained(path)
                missing = VOCABULARY - len(tokenizer)  # a row of the embedding needs a token of its own
                tokenizer.add_tokens([f"<{number}>" for number in range(missing)])
                return tokenizer

        directory.rmdir()  # it makes its own
        Converter(str(source)).convert(str(directory))

    return _once(source.parent / "ctranslate2", convert)


def llama(source: Path, kind: str) -> Path:
    """Return the checkpoint as a GGUF file for llama.cpp, without a vocabulary: ids in, ids out.

    Matrices are stored as `kind`, biases, norms and positions in fp32, as llama.cpp's own converter does.
    """

    def convert(directory: Path) -> None:
        import gguf
        from safetensors.numpy import load_file
        from transformers import GPT2Config

        config = GPT2Config.from_pretrained(source)
        writer = gguf.GGUFWriter(directory / "model.gguf", "gpt2")
        writer.add_block_count(config.n_layer)
        writer.add_context_length(config.n_positions)
        writer.add_embedding_length(config.n_embd)
        writer.add_feed_forward_length(4 * config.n_embd)
        writer.add_head_count(config.n_head)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        writer.add_vocab_size(config.vocab_size)
        writer.add_tokenizer_model("no_vocab")
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, config.n_layer)
        stored = gguf.GGMLQuantizationType[kind]
        for name, tensor in load_file(source / "model.safetensors").items():
            whole = name if name.startswith("transformer.") else f"transformer.{name}"
            if whole.endswith((".attn.bias", ".attn.masked_bias", "lm_head.weight")):
                continue
            if whole.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
                tensor = tensor.T.copy()
            is_matrix = tensor.ndim == 2 and ".wpe." not in whole
            kept = stored if is_matrix else gguf.GGMLQuantizationType.F32
            writer.add_tensor(
                names.get_name(whole, try_suffixes=(".weight", ".bias")),
                gguf.quants.quantize(tensor, kept),
                raw_dtype=kept,
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    return _once(source.parent / f"llama.cpp-{kind}", convert) / "model.gguf"


def openvino(source: Path, weights: str) -> Path:
    """Return the checkpoint for OpenVINO, exported by optimum-intel, with weights in fp32 or int8.

    optimum-intel does not install beside transformers 5.23, so it has an environment of its own.

    Raises:
        FileNotFoundError: there is none.
    """

    def convert(directory: Path) -> None:
        program = EXPORTER / "bin" / "optimum-cli"
        if not program.exists():
            raise FileNotFoundError(f"{program} is missing: make bench-setup installs it")
        command = [program, "export", "openvino", "--task", "text-generation-with-past", "--weight-format", weights]
        subprocess.run([*command, "--model", source, directory], check=True, stdout=sys.stderr)

    return _once(source.parent / f"openvino-{weights}", convert)


def onnx(source: Path, weights: str) -> Path:
    """Return the checkpoint for ONNX Runtime GenAI, with weights in fp32 or int8."""

    def convert(directory: Path) -> None:
        import onnx_graph

        onnx_graph.export(source, directory / "model.onnx")
        if weights == "int8":
            onnx_graph.quantize(directory / "model.onnx")
        settings = json.dumps(onnx_graph.runtime_settings(source), indent=2)
        (directory / "genai_config.json").write_text(settings, encoding="utf-8")

    return _once(source.parent / f"onnxruntime-{weights}", convert)


def _once(directory: Path, write: Callable[[Path], None]) -> Path:
    """Write a folder under another name and rename it when it is complete, unless it exists already."""
    if not directory.exists():
        directory.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=directory.parent))
        try:
            write(unfinished)
            unfinished.rename(directory)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
    return directory
