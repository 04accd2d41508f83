"""transformers' Trainer, uploading what the output directory holds instead of its latest checkpoint."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi
from transformers import Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils.hub import PushInProgress

from gpt2tg.errors import RunError, one_line
from gpt2tg.training.output.layout import RUN_FILE
from gpt2tg.training.output.run_directory import RunDirectory

# Not uploaded: hidden and temporary files, checkpoints, and run.json, which names files of this machine.
NEVER_UPLOADED = ["_*", ".*", "checkpoint-*", RUN_FILE]


class HubTrainer(Trainer):
    """Uploads the model in the output directory itself, with its card, log and plot."""

    def __init__(self, *, directory: RunDirectory, **settings: Any) -> None:
        super().__init__(**settings)
        self.directory = directory

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository before training, so that a missing login is noticed at once.

        Raises:
            RunError: it cannot be created.
        """
        try:
            super().init_hf_repo(token, private)
        except Exception as error:  # of the hub's library, or of the network library below it
            name = self.args.hub_model_id or Path(str(self.args.output_dir)).name
            raise RunError(
                f"--push_to_hub cannot create {name} on the hub: {one_line(error)}; leave the flag out to train "
                f"without it, hf upload {name} DIRECTORY uploads the model later"
            ) from None

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Do nothing: transformers calls this before the directory holds the model of the checkpoint."""

    def push_after_save(self) -> None:
        """Upload in the background, unless an earlier upload is still running or `hub_strategy` is "end"."""
        if not self.args.push_to_hub or self.args.hub_strategy == HubStrategy.END:
            return
        if self.push_in_progress is None or self.push_in_progress.is_done():
            message = f"Training in progress, step {self.state.global_step}"
            upload: Future[CommitInfo] = HfApi().upload_folder(**self._upload_settings(message), run_as_future=True)
            # transformers annotates both as a single Future, but stores and iterates over a list.
            self.push_in_progress = PushInProgress([upload])  # type: ignore[arg-type, assignment]

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> CommitInfo:
        """Upload, and wait until that is done. Only `commit_message` is used: the options decide the rest.

        Raises:
            RunError: the hub cannot be reached, or refuses.
        """
        self._finish_current_push()
        try:
            commit: CommitInfo = HfApi().upload_folder(**self._upload_settings(commit_message))
            return commit
        except Exception as error:  # of the hub's library, or of the network library below it
            raise RunError(
                f"{self.directory.path} was not uploaded: {one_line(error)}; the model there is complete, "
                "hf upload takes it to the hub"
            ) from None

    def _upload_settings(self, message: str | None) -> dict[str, Any]:
        return {
            "repo_id": self.hub_model_id,
            "folder_path": self.directory.path,
            "commit_message": message,
            "token": self.args.hub_token,
            "revision": self.args.hub_revision,
            "ignore_patterns": NEVER_UPLOADED,
            "delete_patterns": self.directory.missing_weights(),
        }
