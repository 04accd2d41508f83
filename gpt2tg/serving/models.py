"""The model that is served, and those that may take its place."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gpt2tg.checkpoint.checkpoint import Checkpoint
from gpt2tg.checkpoint.folder import FoundModel, models_in
from gpt2tg.errors import RunError, UserError, did_you_mean, one_line
from gpt2tg.generation.footprint import bytes_per_text, device_bytes
from gpt2tg.generation.generator import Generator
from gpt2tg.options import ServingOptions
from gpt2tg.serving.errors import ApiError
from gpt2tg.serving.scheduler import FullError, Scheduler, StoppedError, busy_error


@dataclass(frozen=True)
class ServedModel:
    """A loaded model under its name."""

    name: str
    generator: Generator
    given: Mapping[str, Any] = field(default_factory=dict)
    """The decoding options of the command line."""
    tuned: Mapping[str, Any] = field(default_factory=dict)
    """The tuned settings of the checkpoint that apply beside them."""

    @property
    def defaults(self) -> dict[str, Any]:
        """The decoding options for what a request leaves out."""
        return {**self.tuned, **self.given}


def rows_that_fit(most: int, generator: Generator) -> int:
    """Return the number of the longest texts that half of the memory holds, at most so many."""
    model = generator.model
    return min(most, max(1, device_bytes(model.device) // 2 // bytes_per_text(model, model.shape.n_positions)))


@dataclass(frozen=True)
class OtherModels:
    """Where there are other models, and how they are loaded."""

    folder: Path | None
    load: Callable[[Checkpoint], ServedModel]


class Models:
    """The model that answers requests now, and its successors."""

    def __init__(
        self, first: ServedModel, scheduler: Scheduler, options: ServingOptions, others: OtherModels | None = None
    ) -> None:
        self.current = first
        self._first_name, self._first_checkpoint = first.name, first.generator.checkpoint  # its weights may be freed
        self._scheduler, self._options, self._others = scheduler, options, others
        self._is_switching = False

    async def listed(self) -> list[dict[str, Any]]:
        """Return all models for the page."""
        return [
            {
                "name": found.name,
                "kind": found.kind,
                "is_loaded": found.name == self.current.name,
                "can_load": found.checkpoint is not None,
                "note": found.note,
            }
            for found in await asyncio.to_thread(self._found)
        ]

    def _found(self) -> list[FoundModel]:
        """Return the model that was loaded first, and those of the folder."""
        checkpoint = self._first_checkpoint
        is_adapter = checkpoint is not None and checkpoint.base is not None
        note = "the model with which the server was started"
        first = FoundModel(self._first_name, "adapter" if is_adapter else "model", note, checkpoint)
        folder = None if self._others is None else self._others.folder
        if folder is None or checkpoint is None:
            return [first]
        try:
            found = models_in(folder, [checkpoint.without_adapters])
        except UserError:  # the folder was removed meanwhile
            return [first]
        here = checkpoint.directory.resolve()
        others = (other for other in found if other.checkpoint is None or other.checkpoint.directory.resolve() != here)
        return [first, *(_under_another_name(other, first.name, folder) for other in others)]

    async def switch(self, name: str) -> None:
        """Load a model, and let it answer from then on. Texts that are being generated are finished by the old one.

        Raises:
            ApiError: there is no such model, it cannot be loaded, or another one is being loaded.
        """
        if self._is_switching:
            raise ApiError(409, "a model is being loaded: wait for it", "name", "busy")
        if name == self.current.name:
            return
        self._is_switching = True
        try:
            models = {found.name: found for found in await asyncio.to_thread(self._found)}
            if name not in models:
                way_out = did_you_mean(name, models, "/api/state lists the models")
                raise ApiError(404, f"there is no model {one_line(name, 100)}: {way_out}", "name", "model_not_found")
            self.current = await self._load(models[name])
        except (FullError, StoppedError) as error:
            raise busy_error(error) from None
        except (UserError, RunError, OSError, MemoryError) as error:
            message = f"{one_line(name, 100)} cannot be loaded, and {self.current.name} stays: {one_line(error, 400)}"
            raise ApiError(409, message, "name", "not_loaded") from None
        finally:
            self._is_switching = False

    async def _load(self, found: FoundModel) -> ServedModel:
        """Load a model, which takes over. On a CPU, texts go on meanwhile.

        A GPU may be capturing a graph, which work of another thread would break.
        """
        if found.checkpoint is None or self._others is None:
            raise UserError(found.note)
        load, checkpoint = self._others.load, found.checkpoint
        if self.current.generator.model.device.type == "cpu":
            loaded = await asyncio.to_thread(load, checkpoint)
        else:
            (loaded,) = await self._between_steps(lambda: load(checkpoint))
        rows = rows_that_fit(self._options.max_rows, loaded.generator)
        await self._between_steps(lambda: self._scheduler.take_over(loaded.generator, rows))
        return replace(loaded, name=found.name)

    def _between_steps(self, work: Callable[[], Any]) -> asyncio.Future[list[Any]]:
        """Run work in the thread of the scheduler."""

        def part() -> Iterator[list[Any]]:
            yield [work()]

        return asyncio.wrap_future(self._scheduler.call(part()))


def _under_another_name(model: FoundModel, taken: str, folder: Path) -> FoundModel:
    """Return a model with the name of its folder too, if its own is taken."""
    return replace(model, name=f"{folder.resolve().name}/{model.name}") if model.name == taken else model
