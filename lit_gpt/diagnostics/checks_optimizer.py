"""Checks of the optimizer, its groups and its schedule."""

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from lit_gpt.diagnostics.foreign import loss_of
from lit_gpt.diagnostics.result import NotApplicableError, Outcome, check, failed, judged, listed, passed
from lit_gpt.diagnostics.subject import Batch, Subject
from lit_gpt.loss import IGNORE_INDEX

#: The most steps of a schedule that are computed, and the highest rate at its end that counts as an end.
STEPS, HIGHEST_END = 20_000, 0.2


@check("optimizer groups", "the parameter groups in configure_optimizers")
def groups(subject: Subject) -> Outcome:
    """A parameter in no group is never trained; one in two groups moves twice."""
    subject.need_learning()
    counts = Counter(id(p) for o in subject.optimizers for group in o.param_groups for p in group["params"])
    trained = {id(p) for p in subject.module.parameters() if p.requires_grad}
    missing, twice = subject.names(trained - counts.keys()), subject.names({i for i, n in counts.items() if n > 1})
    parts = [f"{len(missing)} in none: {listed(missing)}"] if missing else []
    parts += [f"{len(twice)} in several: {listed(twice)}"] if twice else []
    return failed("; ".join(parts)) if parts else passed(f"{len(trained)} parameters, each in one group")


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
        return failed(f"{len(wrong)} vectors decay: {listed(wrong)}")
    surprises = _not_as_said(subject, decays)
    if surprises:
        return failed(f"with gradients of 0, these move otherwise than their group says: {listed(surprises)}")
    decayed = sum(1 for decay in decays.values() if decay)
    return passed(f"{decayed} parameters decay, {len(decays) - decayed} do not, {len(vectors)} of them vectors")


def _groups(subject: Subject) -> list[dict[str, Any]]:
    return [group for optimizer in subject.optimizers for group in optimizer.param_groups]


def _not_as_said(subject: Subject, decays: dict[int, float]) -> list[str]:
    """Parameters that move without a decay, or do not with one, in a step of a new optimizer with gradients of 0."""
    wrong = []
    with subject.untouched():
        optimizer = _new_optimizer(subject)[0]
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


def _new_optimizer(subject: Subject) -> tuple[torch.optim.Optimizer, Any, bool]:
    """A new optimizer of the module, its schedule or None, and whether that counts steps (not epochs)."""
    made: Any = subject.module.configure_optimizers()
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], list | tuple):  # optimizers, schedules
        made = {"optimizer": made[0][0], "lr_scheduler": made[1][0] if made[1] else None}
    made = made[0] if isinstance(made, list | tuple) else made
    made = made if isinstance(made, dict) else {"optimizer": made}
    schedule = made.get("lr_scheduler")
    options = schedule if isinstance(schedule, dict) else {"scheduler": schedule}
    return made["optimizer"], options["scheduler"], options.get("interval", "epoch") == "step"


@check(
    "tied weights",
    "assign the parameter itself, and after to(device) or load_state_dict again; --model.config.tied_head",
)
def tied(subject: Subject) -> Outcome:
    """A head that should share the embedding's weights but holds a copy has twice the parameters, and the two drift
    apart.
    """
    seen: list[tuple[str, nn.Parameter]] = []
    copies = []
    for name, p in subject.module.named_parameters():
        twins = [n for n, q in seen if p.ndim > 1 and q.shape == p.shape and torch.equal(p, q) and p.std() > 0]
        copies += [f"{name} copies {twin}" for twin in twins]
        seen.append((name, p))
    shared = len(list(subject.module.named_parameters(remove_duplicate=False))) - len(seen)
    if subject.own is not None and getattr(subject.own.config, "tied_head", False):
        net = subject.own.net
        tables = {p.data_ptr() for m in net.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
        heads = [w for member in net.trained_nets() for w in member.head_weights()]
        # A head that is computed from several tables is no parameter.
        if any(isinstance(w, nn.Parameter) and w.data_ptr() not in tables for w in heads):
            copies.append("tied_head is true, and the head has other weights")
    return failed(listed(copies)) if copies else passed(f"{shared} shared parameters, and no two are copies")


@check("accumulation", "divide the sum by the scored targets of the whole step, as LitLanguageModel does")
def accumulation(subject: Subject) -> Outcome:
    """k micro-batches must give the gradient of one batch of the same rows. A mean of their means weighs tokens of
    short rows more.
    """
    subject.need_learning()
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
    worst = max(
        (float((a - b).norm() / a.norm().clamp(min=1e-12)) for a, b in zip(whole, sums, strict=True)), default=0
    )
    return judged(worst < 1e-2, f"gradients of one batch and of two halves differ by {worst:.2g} of their norm")


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
        for number, batch in enumerate(micro_batches):
            torch.manual_seed(0)
            (loss_of(module.training_step(batch, number)) / len(micro_batches)).backward()
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
    rates, steps = _rates(subject)
    peak, last = max(rates), rates[-1]
    end = f"rate at the last of {steps} steps: {last / peak:.3f} of its peak"
    rises = len(rates) > 2 and rates[-1] > rates[-2] * (1 + 1e-9)
    falls = len(rates) > 2 and rates[-1] < rates[-2] * (1 - 1e-9)
    idle = sum(rate <= 0 for rate in rates)
    if rises:
        return failed(f"{end}, and still rising: warmup is longer than the run")
    if idle > max(1, 0.02 * steps):
        return failed(f"{end}; it is 0 in {idle} steps")
    own = subject.own.optimizer_config if subject.own is not None else None
    if own is not None and own.schedule != "constant" and "." not in own.kind:
        highest = own.final_lr + 0.02 + 2 / max(1.0, own.decay_fraction * steps)
        return judged(last / peak <= highest, f"{end}, {own.final_lr:g} expected")
    return judged(not (falls and last > HIGHEST_END * peak), end + ("" if falls else ": constant at the end"))


def _rates(subject: Subject) -> tuple[list[float], int]:
    """The learning rate at each step of the whole run, and the number of steps."""
    trainer, loop = subject.trainer, subject.trainer.fit_loop.epoch_loop
    usual, module = loop.max_steps, subject.module
    config = {name: value for name, value in vars(module).items() if name == "optimizer_config"}
    with subject.untouched():
        try:
            loop.max_steps = subject.options.get("whole_steps") or usual
            if subject.own is not None and subject.run.setup.whole is not None:
                subject.own.optimizer_config = subject.run.setup.whole()[0].optimizer_config
            steps = int(trainer.estimated_stepping_batches)
            optimizer, schedule, by_step = _new_optimizer(subject)
        finally:
            loop.max_steps = usual
            vars(module).update(config)
    if schedule is None or isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
        raise NotApplicableError("no schedule changes the learning rate by itself")
    if not 1 < steps <= STEPS:
        raise NotApplicableError(f"a run of {steps:,} steps has no schedule that can be followed here")
    every, rates = 1 if by_step else max(1, int(trainer.num_training_batches)), list[float]()
    for step in range(1, steps + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()  # without gradients it does nothing
        if step % every == 0:
            schedule.step()
    return rates, steps
