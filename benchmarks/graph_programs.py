"""The rivals that run a graph: OpenVINO GenAI and ONNX Runtime GenAI, each with one loaded checkpoint."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import formats
from agreement import Ids
from jobs import BEAMS, TOP_P, Job, NotOffered


class OpenVino:
    """OpenVINO GenAI with its defaults, except for the precision in which it computes.

    By itself it computes in bf16 on a processor that can. Where the precision is fp32, the KV cache is fp32 too.
    """

    def __init__(self, shape: str, cache: Path, weights: str, precision: str | None) -> None:
        import openvino
        import openvino_genai

        self.openvino, self.api = openvino, openvino_genai
        settings: dict[str, object] = {"INFERENCE_NUM_THREADS": int(os.environ["OMP_NUM_THREADS"])}
        if precision:
            settings |= {"INFERENCE_PRECISION_HINT": precision}
        if precision == "f32":
            settings |= {"KV_CACHE_PRECISION": precision}
        directory = formats.openvino(formats.checkpoint(shape, cache), weights)
        self.pipeline = openvino_genai.LLMPipeline(str(directory), "CPU", **settings)

    def write(self, job: Job) -> Ids:
        """See `Rival`."""
        import numpy as np

        how = {
            "greedy": {},
            "beam": dict(num_beams=BEAMS),
            "top_p": dict(do_sample=True, top_p=TOP_P, temperature=1.0),
        }[job.kind]
        config = self.api.GenerationConfig(max_new_tokens=job.new_tokens, ignore_eos=True, **how)
        ids = np.array(job.prompts, dtype=np.int64)
        inputs = self.api.TokenizedInputs(self.openvino.Tensor(ids), self.openvino.Tensor(np.ones_like(ids)))
        return [list(row) for row in self.pipeline.generate(inputs, config).tokens]

    def steps(self, job: Job) -> list[float]:
        """See `Rival`."""
        raise NotOffered("its steps cannot be timed")


class OnnxRuntime:
    """ONNX Runtime GenAI with a graph of ours, because its own model builder does not know GPT-2."""

    def __init__(self, shape: str, cache: Path, weights: str) -> None:
        import onnxruntime_genai

        self.api = onnxruntime_genai
        config = onnxruntime_genai.Config(str(formats.onnx(formats.checkpoint(shape, cache), weights)))
        session = {
            "intra_op_num_threads": int(os.environ["OMP_NUM_THREADS"]),
            "session.force_spinning_stop": "1",  # quiet between jobs
        }
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self.model = onnxruntime_genai.Model(config)

    def write(self, job: Job) -> Ids:
        """See `Rival`."""
        generator = self._begin(job, job.new_tokens)
        while not generator.is_done():
            generator.generate_next_token()
        start = len(job.prompts[0])
        return [generator.get_sequence(row)[start:].tolist() for row in range(len(job.prompts))]

    def steps(self, job: Job) -> list[float]:
        """See `Rival`."""
        generator = self._begin(job, job.new_tokens + 1)
        generator.generate_next_token()  # the prompt's
        seconds = []
        for _ in range(job.new_tokens):
            start = time.perf_counter()
            generator.generate_next_token()
            seconds.append(time.perf_counter() - start)
        return seconds

    def _begin(self, job: Job, new_tokens: int) -> object:
        """Return its generator, with the prompts read."""
        import numpy as np

        how = {
            "beam": dict(num_beams=BEAMS),
            "top_p": dict(do_sample=True, top_p=TOP_P, top_k=0, temperature=1.0),
        }.get(job.kind, {})
        length = len(job.prompts[0]) + new_tokens
        settings = self.api.GeneratorParams(self.model)
        settings.set_search_options(batch_size=len(job.prompts), min_length=length, max_length=length, **how)
        generator = self.api.Generator(self.model, settings)
        generator.append_tokens(np.array(job.prompts, dtype=np.int32))
        return generator
