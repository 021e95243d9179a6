"""The Trainer's options that follow from the size of an optimizer step."""

from lightning.pytorch import Trainer

from datamodules.errors import UserError


def set_accumulation(trainer: Trainer, accumulation: int) -> None:
    """Sets ``accumulate_grad_batches``, and makes an integer ``val_check_interval`` count optimizer steps.

    Lightning counts that interval in micro-batches. A validation between two steps would save a checkpoint there, which
    does not resume exactly.

    Args:
        trainer: the Trainer to change.
        accumulation: micro-batches of an optimizer step in one process.

    Raises:
        UserError: the Trainer's own options contradict this.
    """
    if trainer.accumulate_grad_batches not in (1, accumulation):
        raise UserError(
            f"accumulate_grad_batches {trainer.accumulate_grad_batches} contradicts tokens_per_step and "
            f"micro_batch_size, which make it {accumulation}; leave it out."
        )
    interval = getattr(trainer, "val_check_interval", None)  # not set where it is a time
    by_clock = vars(trainer)["_val_check_time_interval"] is not None
    fraction = isinstance(interval, float) and interval != 1.0
    if (accumulation > 1 and (by_clock or fraction)) or (trainer.world_size > 1 and by_clock):
        described = "by the clock" if by_clock else f"{interval} of an epoch"
        raise UserError(
            f"val_check_interval {described} may fall inside a step, which is of {accumulation} micro-batches, or at "
            "another step in another process: give it as a whole number of steps."
        )
    trainer.accumulate_grad_batches = accumulation
    if isinstance(interval, int):
        # Kept in the Trainer: a second `fit` with it must not multiply the product again.
        steps = vars(trainer).setdefault("_val_check_steps", interval)
        trainer.val_check_interval = steps * accumulation
