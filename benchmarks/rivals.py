"""The list of rivals, and the program that runs one of them in a process of its own.

    python benchmarks/rivals.py NAME SHAPE CACHE THREADS      # jobs in, results out, a line of JSON each

No two rivals share a process, so each has its own libraries, threads and memory. A rival that waits for a job sleeps on
its input.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import machine
from graph_programs import OnnxRuntime, OpenVino
from jobs import Job, NotOffered, Rival
from programs import CTranslate2, Llama, Ours, Transformers, precisions_of_ours

ABSENT = {
    "mlx-lm": "made for Apple's GPUs; in one look on a busy processor it took seven times as long as ONNX Runtime"
}
"""Programs that a reader may look for, and why they are no rivals."""


@dataclass(frozen=True)
class Entry:
    """How to start a rival."""

    needs: tuple[str, ...]
    """The modules that it needs."""
    make: Callable[[str, Path], Rival]
    bytes_per_weight: float
    """The bytes that a decode step reads per weight."""
    products: str = "fp32"
    """The narrowest numbers that it may multiply: the arithmetic by which it is judged."""
    environment: dict[str, str] = field(default_factory=dict)


def _entries() -> dict[str, Entry]:
    hf = ("transformers",)
    entries = {
        f"gpt2tg-{precision}": Entry(("torch",), lambda *where, p=precision: Ours(*where, p), *counted)
        for precision, counted in (("fp32", (4,)), ("fp16", (2, "bf16")), ("int8", (1, "int8")))
    }
    entries["transformers-eager"] = Entry(hf, lambda *where: Transformers(*where, False), 4)
    entries["transformers-static"] = Entry(hf, lambda *where: Transformers(*where, True), 4)
    for kind, counted in (("float32", (4,)), ("int8", (1, "int8"))):
        for library, has_mkl in (("mkl", "1"), ("onednn", "0")):
            entries[f"ctranslate2-{kind}-{library}"] = Entry(
                ("ctranslate2", *hf),
                lambda *where, k=kind: CTranslate2(*where, k),
                *counted,
                environment={"CT2_USE_MKL": has_mkl},
            )
    for kind, counted in (("F32", (4,)), ("F16", (2, "bf16")), ("Q8_0", (34 / 32, "int8"))):
        entries[f"llama.cpp-{kind}"] = Entry(
            ("llama_cpp", "gguf", *hf), lambda *where, k=kind: Llama(*where, k), *counted
        )
    for name, setting, counted in (
        ("fp32", ("fp32", "f32"), (4,)),
        ("bf16", ("fp32", "bf16"), (2, "bf16")),
        ("int8", ("int8", None), (1, "int8")),
    ):
        entries[f"openvino-{name}"] = Entry(
            ("openvino_genai", *hf), lambda *where, s=setting: OpenVino(*where, *s), *counted
        )
    for kind, counted in (("fp32", (4,)), ("int8", (36 / 32, "int8"))):  # int8: a scale in fp32 for 32 weights
        entries[f"onnxruntime-genai-{kind}"] = Entry(
            ("onnxruntime_genai", "onnxruntime", "onnx", *hf), lambda *where, k=kind: OnnxRuntime(*where, k), *counted
        )
    return entries


ENTRIES = _entries()
"""By name, in the order of the tables."""

SLOWER_LIBRARIES = (
    "ctranslate2-float32-mkl",
    "ctranslate2-int8-onednn" if "Intel" in machine.processor() else "ctranslate2-int8-mkl",
)
"""CTranslate2 with the matrix library that was slower in 11 of 12 comparisons on an Intel Xeon, and in int8 a tenth as
fast on an AMD EPYC. Measured if named."""


def missing(name: str) -> str | None:
    """Return why a rival cannot run here; None if it can."""
    for module in ENTRIES[name].needs:
        if find_spec(module) is None:
            return f"{module} is not installed"
    family, _, precision = name.partition("-")
    if family == "gpt2tg" and precision != "fp32" and precision not in precisions_of_ours():
        return "this version has no such precision"
    if name == "openvino-bf16" and not machine.has_bfloat16():
        return "this processor has no instructions for bfloat16: it would compute in fp32"
    return None


def serve(arguments: Sequence[str]) -> None:
    """Load the rival, then answer jobs until the input ends. What libraries print goes to stderr."""
    name, shape, cache, threads = arguments
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(**said: object) -> None:
        print(json.dumps(said), file=answers, flush=True)

    start = time.perf_counter()
    rival = ENTRIES[name].make(shape, Path(cache))
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(int(threads))
    answer(loaded=time.perf_counter() - start)
    for line in sys.stdin:
        job = Job(**json.loads(line))
        try:
            start = time.perf_counter()
            result = rival.steps(job) if job.kind == "steps" else rival.write(job)
            answer(seconds=time.perf_counter() - start, result=result)
        except NotOffered as reason:
            answer(refused=str(reason))


if __name__ == "__main__":
    serve(sys.argv[1:])
