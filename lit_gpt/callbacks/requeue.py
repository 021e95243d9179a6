"""Puts a SLURM job back into the queue when SLURM has said that its time is nearly over, and the run has saved."""

import os
import subprocess
from collections.abc import Mapping

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Trainer


def requeue_if_asked(trainer: Trainer, received: int) -> None:
    """Requeue the job if the signal asks for it. Lightning's plugin for SLURM says which signal does, and whether.

    Lightning's own handler is not used. It would save at once, in the middle of a step, into a file that
    ``--resume auto`` does not know, and train on.

    Args:
        trainer: The Trainer of a run that has saved.
        received: The number of the signal.
    """
    environment = trainer._accelerator_connector.cluster_environment
    if not isinstance(environment, SLURMEnvironment) or not environment.auto_requeue:
        return
    if received == environment.requeue_signal:
        if trainer.is_global_zero:
            print(_requeue(job_to_requeue(os.environ)), flush=True)
        trainer.strategy.barrier("requeue")  # srun may end all processes as soon as the first has left


def job_to_requeue(environment: Mapping[str, str]) -> str:
    """The job's id, as ``scontrol`` takes it; of a job array, the id of this task alone."""
    array = environment.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{environment['SLURM_ARRAY_TASK_ID']}" if array else environment.get("SLURM_JOB_ID", "")


def _requeue(job: str) -> str:
    """Call ``scontrol``. Returns a line about what came of it."""
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
        problem = done.stderr.strip() if done.returncode else ""
    except OSError as error:
        problem = error.strerror or str(error)
    if problem:
        return f"scontrol cannot requeue job {job} ({problem}): submit it again, and it goes on"
    return f"job {job} is back in the queue"
