"""The Trainer's own options that follow from the size of a step."""

from lightning.pytorch import Trainer

from datamodules.errors import UserError


def set_accumulation(trainer: Trainer, accumulation: int) -> None:
    """Makes it step once in so many micro-batches, and counts an integer ``val_check_interval`` in steps.

    Lightning counts that in micro-batches, and a checkpoint saved between two steps would not resume exactly.
    """
    if trainer.accumulate_grad_batches not in (1, accumulation):
        raise UserError(
            f"accumulate_grad_batches {trainer.accumulate_grad_batches} contradicts tokens_per_step and "
            f"micro_batch_size, which make it {accumulation}; leave it out."
        )
    interval = getattr(trainer, "val_check_interval", None)  # unset where it is a time
    by_clock = vars(trainer)["_val_check_time_interval"] is not None
    fraction = isinstance(interval, float) and interval != 1.0
    if (accumulation > 1 and (by_clock or fraction)) or (trainer.world_size > 1 and by_clock):
        named = "by the clock" if by_clock else f"{interval} of an epoch"
        raise UserError(
            f"val_check_interval {named} may fall inside a step, which is of {accumulation} micro-batches, or at "
            "another step in another process: give it as a whole number of steps."
        )
    trainer.accumulate_grad_batches = accumulation
    if isinstance(interval, int):
        steps = vars(trainer).setdefault("_val_check_steps", interval)  # of its first datamodule
        trainer.val_check_interval = steps * accumulation
