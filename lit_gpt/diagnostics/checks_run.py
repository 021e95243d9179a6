"""Checks of a short run: evaluation, learning, checkpoint, resume, and where its time goes."""

import math
import os
import resource
from collections import Counter
from statistics import mean, median
from typing import Any

import torch
from lightning.pytorch.utilities import move_data_to_device
from torch import Tensor

from datamodules.planning import planned_step
from datamodules.step_size import StepSize
from lit_gpt.callbacks.run_table import memory_of
from lit_gpt.diagnostics.result import AFTER_RUN, NotApplicableError, Outcome, check, listed
from lit_gpt.diagnostics.subject import Subject
from lit_gpt.integrity import WithoutInitialisation
from lit_gpt.language_model import LitLanguageModel
from lit_gpt.loss import IGNORE_INDEX
from lit_gpt.optim import build_optimizer


@check(
    "every parameter moves",
    "the parameter groups in configure_optimizers, learning rates, and detach() in the network",
    AFTER_RUN,
)
def moves(subject: Subject) -> Outcome:
    """A parameter that a run leaves alone is a part that is not trained; it may be in no group of the optimizer."""
    subject.need_learning()
    initial, final = subject.run.initial, subject.run.final
    parameters = {name: p for name, p in subject.module.named_parameters() if p.requires_grad}
    grouped = {id(p) for optimizer in subject.optimizers for group in optimizer.param_groups for p in group["params"]}
    still = [name for name in parameters if torch.equal(initial[name], final[name])]
    missing = [name for name, p in parameters.items() if id(p) not in grouped]
    detail = f"{len(parameters) - len(still)} of {len(parameters)} parameters moved in {subject.run.steps} steps"
    detail += f"; not {listed(still)}" * bool(still) + f"; in no group: {listed(missing)}" * bool(missing)
    return not (still or missing), detail


@check("loss falls", "--model.optimizer.lr and warmup, if every other line passes", AFTER_RUN)
def loss_falls(subject: Subject) -> Outcome:
    """After a while a language model has to beat the unigram, which knows how frequent each token is, and then the
    bigram, which knows the token before.
    """
    subject.need_learning()
    run = subject.run
    unigram, bigram = _baselines(subject)
    known = f"unigrams have {unigram:.3f}, bigrams {bigram:.3f}"
    detail = f"{run.first_val:.3f} to {run.last_val:.3f} nats on validation rows in {run.steps} steps; {known}"
    if run.last_val < unigram:
        return True, detail
    return run.last_val < run.first_val + 0.02, f"{detail}; neither is beaten yet"


def _baselines(subject: Subject) -> tuple[float, float]:
    """Nats per token of validation rows under the unigrams and the bigrams of training rows."""
    train, val = _pairs(subject.rows), _pairs(subject.run.val_batch)
    pairs, first, last = Counter(train), Counter(x for x, _ in train), Counter(y for _, y in train)
    unigrams = [(last[y] + 0.5) / (len(train) + 0.5 * (subject.tokens + 1)) for _, y in val]
    # Five pseudo-counts, spread as the unigrams are.
    bigrams = [(pairs[x, y] + 5 * p) / (first[x] + 5) for (x, y), p in zip(val, unigrams, strict=True)]
    return -mean(map(math.log, unigrams)), -mean(map(math.log, bigrams))


def _pairs(batch: dict[str, Tensor]) -> list[tuple[int, int]]:
    scored = batch["targets"] != IGNORE_INDEX
    return list(zip(batch["input_ids"][scored].tolist(), batch["targets"][scored].tolist(), strict=True))


@check(
    "evaluation mode",
    "F.dropout(x, p, self.training), no self.train() in validation_step and no self.eval() in training_step",
    AFTER_RUN,
)
def evaluation_mode(subject: Subject) -> Outcome:
    """With dropout on, a validation loss is too high and differs each time. With dropout off, a training overfits."""
    first, second = subject.run.evaluation, subject.run.evaluate()
    if not first.batches:
        raise NotApplicableError("there is no validation")
    if not subject.run.trains:
        return False, "the module is in eval mode while it trains, so without dropout"
    if first.training:
        return False, f"in train mode: {listed(sorted(first.training))}"
    differing = [name for name, value in first.metrics.items() if not _same(value, second.metrics.get(name))]
    values = ", ".join(f"{name} {value:.4f}" for name, value in list(first.metrics.items())[:2])
    if differing:
        return False, f"{differing[0]} is {first.metrics[differing[0]]:.5f}, then {second.metrics[differing[0]]:.5f}"
    return True, f"the same twice: {values or 'no metric is logged'}"


def _same(a: float, b: float | None) -> bool:
    return b is not None and (a == b or (math.isnan(a) and math.isnan(b)) or abs(a - b) < 1e-5 * max(1.0, abs(a)))


@check("evaluated weights", "the network that validation_step uses", AFTER_RUN)
def evaluated_weights(subject: Subject) -> Outcome:
    """An evaluation of other weights than the trained ones (a copy, a model that was loaded before) never improves."""
    subject.need_learning()
    final, initial = subject.run.evaluation, subject.run.evaluate(subject.run.initial)
    name = next((name for name in final.metrics if "loss" in name), None) or next(iter(final.metrics), None)
    if name is None:
        raise NotApplicableError("validation logs no metric")
    before, after = initial.metrics[name], final.metrics[name]
    return before != after, f"{name} is {before:.5f} before the run and {after:.5f} after it"


@check(
    "mean over tokens",
    "sum nats and tokens, and divide once, as lit_gpt.metrics.TokenMetrics does",
    AFTER_RUN,
)
def mean_over_tokens(subject: Subject) -> Outcome:
    """Rows and batches have different numbers of scored targets. A mean of their means, or one that leaves some out,
    changes with the batch size.
    """
    found = subject.run.evaluation
    name = next((name for name in found.metrics if name in ("val/loss", "val_loss")), None)
    if name is None:
        raise NotApplicableError("validation logs neither val/loss nor val_loss")
    if None in found.nats:
        raise NotApplicableError("no log_softmax of the evaluation has a row for every target")
    nats = found.nats if subject.own is None else _own_nats(subject)
    counts = [int((batch["targets"] != IGNORE_INDEX).sum()) for batch in found.batches]
    expected, logged = sum(nats) / max(sum(counts), 1), found.metrics[name]
    means = [expected]
    if subject.own is None:  # self.log weighs batches by their rows, as Lightning does everywhere
        rows = [len(batch["targets"]) for batch in found.batches]
        means += [sum(n * r / max(c, 1) for n, r, c in zip(nats, rows, counts, strict=True)) / sum(rows)]
    right = any(abs(mean - logged) < 2e-4 * max(1.0, abs(mean)) for mean in means)
    return right, f"{name} is {logged:.5f} nats, and {expected:.5f} from {sum(counts):,} tokens one by one"


def _own_nats(subject: Subject) -> list[float]:
    """Nats of each batch of the evaluation, scored once more."""
    module, nats = subject.need_own(), list[float]()
    with subject.untouched(), torch.no_grad():
        for batch in subject.run.evaluation.batches:
            module.eval()
            nats.append(float(module.token_scores(move_data_to_device(batch, module.device))[0].double().sum()))
    return nats


@check("checkpoint", "buffers and attributes that the network needs must be in state_dict", AFTER_RUN)
def checkpoint(subject: Subject) -> Outcome:
    """A run of days is worth its checkpoints."""
    run = subject.run
    if run.saved is None:
        raise NotApplicableError(f"the run of {run.steps} steps saved none")
    loaded = run.loaded_loss()
    size = run.saved.stat().st_size / 1e6
    detail = f"loss {run.loss_at_save:.6f} when it was saved, {loaded:.6f} from the file of {size:.1f} MB"
    return abs(loaded - run.loss_at_save) < 1e-5 * max(1.0, abs(loaded)), detail


@check("resume", "a loader with state_dict, and what else the module keeps between steps", AFTER_RUN)
def resume(subject: Subject) -> Outcome:
    """A run that was interrupted should end as one that was not: the same batches, dropout and optimizer."""
    run = subject.run
    if run.saved is None:
        raise NotApplicableError(f"the run of {run.steps} steps saved none")
    loader: Any = subject.data.train_dataloader()
    if not hasattr(loader, "load_state_dict"):
        raise NotApplicableError("the training loader has no state_dict, so a resumed epoch begins anew")
    other = run.resumed()
    differing = [name for name, value in run.final.items() if not torch.equal(value, other[name])]
    detail = f"{len(run.final) - len(differing)} of {len(run.final)} tensors are equal after {run.steps} steps"
    if run.device != "cpu" and differing:
        raise NotApplicableError(f"{detail}; on a GPU the order of sums may differ")
    return not differing, f"{detail}, of which a second run did the last {run.steps - run.saved_step}"


@check("time of a step", "--data.num_workers, or tokens that are prepared once", AFTER_RUN)
def time_of_a_step(subject: Subject) -> Outcome:
    """A network that waits for its data is paid for doing nothing."""
    run = subject.run
    if len(run.step_seconds) < 3:
        raise NotApplicableError("the run is too short to be timed")
    step, wait = median(run.step_seconds[2:] or run.step_seconds), median(run.wait_seconds[2:] or [0.0])
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    detail = f"{1e3 * step:.0f} ms, and {1e3 * wait:.1f} ms for its data; {memory:.1f} GB of memory"
    return wait < 0.05 or wait < step, detail


@check("size of the whole run", "--model.config.n_layer, n_embd, block_size and --data.micro_batch_size", AFTER_RUN)
def whole_size(subject: Subject) -> Outcome:
    """A run that does not fit the memory ends at its first step, and one that takes months is not started."""
    subject.need_own()
    if subject.run.of.whole is None:
        raise NotApplicableError("this is the whole set-up")
    large, data = subject.run.of.whole()
    assert isinstance(large, LitLanguageModel)
    large.complete_config(subject.text)  # the vocabulary of the small one's tokenizer, where that is trained
    if "compile" in large.options:
        large.options["compile"] = False
    with torch.device("meta"), WithoutInitialisation():
        large.configure_model()
    step = planned_step(data, large.config.block_size, 1)
    if step is None:
        raise NotApplicableError("the batch size of this data is unknown before it is read")
    learned = [build_optimizer(large.net, large.optimizer_config)] if subject.learns else []
    precision, device = str(subject.trainer.precision), subject.run.device
    needed = memory_of(large, learned, step, precision, device)
    if needed is None:
        raise NotApplicableError("the memory of this network cannot be computed")
    room = _memory_of_device(subject.trainer.strategy.root_device)
    detail = f"{large.net.num_parameters():,} parameters with {large.config.vocab_size:,} tokens; a step takes"
    detail += f" {needed.total / 1e9:.2f} of {room / 1e9:.0f} GB with {step.micro} rows at a time"
    return needed.total < room, detail + _outlook(subject, large, step)


def _memory_of_device(device: torch.device) -> int:
    """Bytes of memory of a device."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _outlook(subject: Subject, large: LitLanguageModel, step: StepSize) -> str:
    """How long the whole run takes at the operations per second of the short one, if the network counts them."""
    run, steps = subject.run, subject.options.get("max_steps") or -1
    each = large.flops_per_token(step.block_size)
    ours = subject.need_own().flops_per_token(subject.rows["targets"].size(1))
    if steps < 0 or not (each and ours and run.step_seconds):
        return ""
    speed = ours * run.targets_per_batch / median(run.step_seconds)
    hours = steps * step.tokens * each / speed / 3600
    return f"; {hours:.2g} hours at the {speed / 1e9:.1f} GFLOP/s of the small one"
