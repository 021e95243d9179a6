"""The folder of a run: a new one, that of the checkpoint, or with ``--resume auto`` that of an unfinished run."""

from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from jsonargparse import ArgumentError
from lightning.pytorch.cli import LightningCLI

from datamodules.files import expanded
from lit_gpt import checkpoint
from lit_gpt.callbacks import run_folder
from lit_gpt.callbacks.run_lock import RunLock
from lit_gpt.cli import lost_processes
from lit_gpt.integrity import checkpoint_to_resume, step_of
from lit_gpt.language_model import LitLanguageModel, print_rank_zero


class FolderCLI(LightningCLI):
    """The part of `LitCLI` that chooses the folder of a run."""

    verb: str
    stored: dict[str, Any]  # what a checkpoint tells of its run
    settings: run_folder.Settings
    claimed: RunLock | None = None  # of a folder that was created for a new run
    folder = Path("logs")  # until the run's folder is known
    folder_callback: run_folder.RunFolder | None = None

    def _choose_folder(self) -> None:
        config = self.config[self.verb]
        self.settings = run_folder.settings_of(config)
        root = expanded(config.logs_dir)
        not_resumable = run_folder.not_resumable(root / config.name, self.settings, self._read) if config.resume else {}
        unfinished = next((folder for folder, why_not in not_resumable.items() if why_not is None), None)
        if unfinished:
            self._resume(unfinished)
        self.folder = self._folder_of_checkpoint() or unfinished or self._new_folder(root / config.name)
        if self.claimed and not_resumable:
            newest, why_not = next(iter(not_resumable.items()))
            more = f" (--ckpt_path {newest} with more steps resumes it)" * (why_not == run_folder.FINISHED)
            print_rank_zero([f"{newest} {why_not}: a new run starts in {self.folder}{more}"])
        run_folder.pass_on(self.folder)

    def _resume(self, folder: Path) -> None:
        saved = checkpoint_to_resume(folder / run_folder.LAST)
        self.config[self.verb].ckpt_path = str(saved)
        print_rank_zero([f"resuming {folder}"])
        if saved and saved.name != run_folder.LAST.name:
            step = step_of(saved)
            print_rank_zero(
                [f"its last.ckpt is damaged or gone: resuming from step {step}, {saved}, the newest intact one"]
            )

    def _folder_of_checkpoint(self) -> Path | None:
        """The folder of the run that the checkpoint belongs to. None: a copy elsewhere starts a run in a new folder."""
        config = self.config[self.verb]
        if not config.ckpt_path:
            return None
        # a resume continues from the end of a run
        path = checkpoint.file_of(config.ckpt_path, ("last.ckpt", "best.ckpt"))
        if run_folder.rank() and not path.is_file():
            config.ckpt_path = None  # a machine without the file gets it from process 0
            return None
        config.ckpt_path = str(path)
        if issubclass(resolve_name(config.model.class_path), LitLanguageModel):
            self.stored = checkpoint.read(path, mmap=True)[checkpoint.KEY]  # refused before anything is written
        return run_folder.folder_of(path)

    def _new_folder(self, parent: Path) -> Path:
        if run_folder.rank() == 0:
            self.claimed = run_folder.new_run_folder(parent)
            lost_processes.before_end = self._remove_unused_folder
            return self.claimed.folder
        # Under torchrun rank 0 broadcasts the folder later.
        return run_folder.chosen_by_rank_0() or parent / "version_0"

    def _read(self, path: Path) -> run_folder.Settings | None:
        """The settings in a run's config.yaml. Options that did not exist then have their defaults."""
        try:
            return run_folder.settings_of(self._parser(self.verb).parse_path(path))
        except (ArgumentError, OSError, TypeError, ValueError):  # options that are gone, no file, not UTF-8
            return None

    def _remove_unused_folder(self) -> None:
        """Remove the folder of a run that never began."""
        if self.claimed and not (self.folder_callback and self.folder_callback.began):
            run_folder.remove_unused(self.claimed.folder)
