"""Checks of the optimizer, its groups and its schedule."""

from typing import Any

import torch
from lightning.pytorch.core.optimizer import _init_optimizers_and_lr_schedulers
from torch import Tensor, nn

from lit_gpt.diagnostics.foreign import loss_of
from lit_gpt.diagnostics.result import NotApplicableError, Outcome, check, listed
from lit_gpt.diagnostics.subject import Subject
from lit_gpt.loss import IGNORE_INDEX
from lit_gpt.protocols import Batch

#: The most steps of a schedule that are computed, and the highest rate at its end that counts as an end.
STEPS, HIGHEST_END = 20_000, 0.2
#: A run of fewer steps is a look at something, such as a profile, and its schedule does not matter.
SHORTEST = 50


@check("weight decay", "--model.optimizer.weight_decay and group_weight_decay, or a group without decay for vectors")
def weight_decay(subject: Subject) -> Outcome:
    """Decay pulls weights to zero. Matrices profit; gains, biases and scales, of which zero is no neutral value,
    should have none.
    """
    subject.need_learning()
    vectors = {id(p) for p in subject.module.parameters() if p.ndim < 2}
    decays = {id(p): g["weight_decay"] for g in _groups(subject) for p in g["params"] if "weight_decay" in g}
    asked = subject.own is not None and subject.own.optimizer_config.group_weight_decay.get("vectors", 0)
    wrong = [] if asked else subject.names({i for i in vectors if decays.get(i)})
    if wrong:
        return False, f"{len(wrong)} vectors decay: {listed(wrong)}"
    surprises = _not_as_said(subject, decays)
    if surprises:
        return False, f"with gradients of 0, these move otherwise than their group says: {listed(surprises)}"
    decayed = sum(1 for decay in decays.values() if decay)
    return True, f"{decayed} parameters decay, {len(decays) - decayed} do not, {len(vectors)} of them vectors"


def _groups(subject: Subject) -> list[dict[str, Any]]:
    return [group for optimizer in subject.optimizers for group in optimizer.param_groups]


def _not_as_said(subject: Subject, decays: dict[int, float]) -> list[str]:
    """Parameters that move without a decay, or do not with one, in a step of a new optimizer with gradients of 0."""
    wrong = []
    with subject.untouched():
        optimizer = _init_optimizers_and_lr_schedulers(subject.module)[0][0]
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        named = [(n, p, p.detach().clone()) for n, p in subject.module.named_parameters() if id(p) in rates]
        for _, p, _ in named:
            p.grad = torch.zeros_like(p)
        optimizer.step()
        for name, p, before in named:
            shrinks = rates[id(p)] * decays.get(id(p), 0.0)  # by this share; rounding hides less than 1e-6
            moved = not torch.equal(p, before)
            if before.any() and (moved if shrinks == 0 else not moved and shrinks > 1e-6):
                wrong.append(name)
    return wrong


@check(
    "tied weights",
    "assign the parameter itself, and after to(device) or load_state_dict again; --model.config.tied_head",
)
def tied(subject: Subject) -> Outcome:
    """A head that should share the embedding's weights but holds a copy has twice the parameters, and the two drift
    apart.
    """
    named = dict(subject.module.named_parameters())
    tables = {id(m.weight) for m in subject.module.modules() if isinstance(m, nn.Embedding)}
    # Equal layers are no fault: nn.TransformerEncoder makes copies of one. Only the copy of an embedding is.
    copies = [
        f"{name} copies {table}"
        for table, q in named.items()
        for name, p in named.items()
        if id(q) in tables and p is not q and p.shape == q.shape and torch.equal(p, q) and p.std() > 0
    ]
    shared = len(list(subject.module.named_parameters(remove_duplicate=False))) - len(named)
    if subject.own is not None and getattr(subject.own.config, "tied_head", False):
        net = subject.own.net
        tables = {p.data_ptr() for m in net.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
        heads = [w for member in net.trained_nets() for w in member.head_weights()]
        # A head that is computed from several tables is no parameter.
        if any(isinstance(w, nn.Parameter) and w.data_ptr() not in tables for w in heads):
            copies.append("tied_head is true, and the head has other weights")
    return (False, listed(copies)) if copies else (True, f"{shared} shared parameters, and no two are copies")


@check("accumulation", "divide the sum by the scored targets of the whole step, as LitLanguageModel does")
def accumulation(subject: Subject) -> Outcome:
    """k micro-batches must give the gradient of one batch of the same rows. A mean of their means weighs tokens of
    short rows more.
    """
    subject.need_learning()
    if subject.own is None and (subject.options.get("accumulate_grad_batches") or 1) == 1:
        raise NotApplicableError("this run accumulates no gradients: accumulate_grad_batches is 1")
    batch = _uneven(subject)
    half = len(batch["targets"]) // 2
    if half == 0:
        raise NotApplicableError("a step has one row")
    batch = {name: value[: 2 * half] for name, value in batch.items()}
    parts = [{name: value[part] for name, value in batch.items()} for part in (slice(0, half), slice(half, None))]
    with subject.stirred():
        whole = _gradient(subject, [batch])
    with subject.stirred():
        sums = _gradient(subject, parts)
    # A gradient that is 0 but for rounding, such as that of a bias of attention's keys, is measured by the largest.
    least = 1e-5 * max((float(a.norm()) for a in whole), default=0.0) + 1e-12
    worst = max(
        (float((a - b).norm()) / max(float(a.norm()), least) for a, b in zip(whole, sums, strict=True)), default=0
    )
    return worst < 1e-2, f"gradients of one batch and of two halves differ by {worst:.2g} of their norm"


def _uneven(subject: Subject) -> Batch:
    """The batch, with different numbers of scored targets in its halves, where the data can have that at all."""
    batch = dict(subject.batch)
    if subject.own is None and bool((subject.rows["targets"] != IGNORE_INDEX).all()):
        return batch
    targets = batch["targets"].clone()
    place = torch.arange(targets.size(1), device=targets.device)
    fewer = (targets[-(len(targets) // 2) :] != IGNORE_INDEX).cumsum(1) > max(1, len(place) // 8)
    targets[-(len(targets) // 2) :][fewer] = IGNORE_INDEX
    return {**batch, "targets": targets}


def _gradient(subject: Subject, micro_batches: list[Batch]) -> list[Tensor]:
    """The gradients that an optimizer step gets from micro-batches, by the hooks of a real step."""
    trainer, module = subject.trainer, subject.module
    if not module.automatic_optimization:
        raise NotApplicableError("manual optimization: training_step itself changes the weights")
    usual = trainer.accumulate_grad_batches
    trainer.accumulate_grad_batches = len(micro_batches)
    try:
        module.eval()
        if subject.own is not None:
            subject.own._step_sums, subject.own._scored_counts = 0, []
        totals = subject.own.step_totals(micro_batches) if subject.own is not None else {}
        for number, batch in enumerate(micro_batches):
            torch.manual_seed(0)
            (loss_of(module.training_step({**batch, **totals}, number)) / len(micro_batches)).backward()
        module.on_before_optimizer_step(subject.optimizers[0])
        return [p.grad.clone() for p in module.parameters() if p.grad is not None]
    finally:
        trainer.accumulate_grad_batches = usual


@check("schedule", "--trainer.max_steps, --model.optimizer.schedule, warmup and decay_fraction")
def schedule(subject: Subject) -> Outcome:
    """Most of the last gain comes while the learning rate goes down. A schedule made for more steps than the run has
    never gets there; one made for fewer trains at a rate of 0.
    """
    subject.need_learning()
    rates, every = _rates(subject)
    peak, last, steps = max(rates), rates[-1], len(rates)
    before = rates[-1 - every] if steps > every + 1 else last
    end = f"learning rate at the last of {steps:,} steps: {last / max(peak, 1e-12):.3f} of its peak"
    idle = sum(rate <= 0 for rate in rates)
    if last > before * (1 + 1e-9):
        return False, f"{end}, and still rising: warmup is longer than the run"
    if idle > max(1, 0.02 * steps):
        return False, f"{end}; it is 0 in {idle:,} steps"
    own = subject.own.optimizer_config if subject.own is not None else None
    if own is not None and own.schedule != "constant" and "." not in own.kind:
        highest = own.final_lr + 0.02 + 2 / max(1.0, own.decay_fraction * steps)
        return last / peak <= highest, f"{end}, {own.final_lr:g} expected"
    falls = last < before * (1 - 1e-9)
    by_epoch = "; it changes once an epoch: interval is not 'step'" * (every > 1)
    return not (falls and last > HIGHEST_END * peak), end + ("" if falls else ", constant at the end") + by_epoch


def _rates(subject: Subject) -> tuple[list[float], int]:
    """The learning rate at each step of the whole run, and after how many steps the schedule advances. A run that is
    given in epochs is followed at the size of the small one, in which the warmup of ours is a share of the steps.
    """
    trainer, loop, options = subject.trainer, subject.trainer.fit_loop, subject.options
    usual, module, whole = (loop.epoch_loop.max_steps, loop.max_epochs), subject.module, subject.run.of.whole
    asked, epochs = max(options.get("max_steps") or -1, -1), options.get("max_epochs") or -1
    if asked < 0 and subject.own is None and (whole or epochs < 0):
        raise NotApplicableError("max_steps of the whole run is not given")
    config = {name: value for name, value in vars(module).items() if name == "optimizer_config"}
    with subject.untouched():
        try:  # a schedule may ask for the number of steps at each of them
            if asked > 0 or (epochs > 0 and not whole):
                loop.epoch_loop.max_steps, loop.max_epochs = asked, epochs
            if asked > 0 and subject.own is not None and whole is not None:
                subject.own.optimizer_config = whole()[0].optimizer_config
            return _followed(subject, int(trainer.estimated_stepping_batches))
        finally:
            loop.epoch_loop.max_steps, loop.max_epochs = usual
            vars(module).update(config)


def _followed(subject: Subject, steps: int) -> tuple[list[float], int]:
    """See `_rates`; for a number of steps."""
    trainer, ((optimizer, *_), schedules) = subject.trainer, _init_optimizers_and_lr_schedulers(subject.module)
    if not schedules or schedules[0].reduce_on_plateau:
        raise NotApplicableError("no schedule changes the learning rate by itself")
    schedule, by_step = schedules[0].scheduler, schedules[0].interval == "step"
    every = 1 if by_step else max(1, int(trainer.num_training_batches) // trainer.accumulate_grad_batches)
    if 0 < (subject.options.get("max_steps") or -1) < SHORTEST:
        raise NotApplicableError(f"a run of {steps} steps is too short to train anything")
    if not 1 < steps <= STEPS or (subject.run.of.whole is not None and not by_step):
        raise NotApplicableError(f"a run of {steps:,} steps has no schedule that can be followed here")
    rates = list[float]()
    for step in range(1, steps + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()  # without gradients it does nothing
        if step % every == 0:
            schedule.step()  # type: ignore[call-arg]
    return rates, every
