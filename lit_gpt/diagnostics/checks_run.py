"""Checks of a short run: evaluation, learning, checkpoint, resume, and where its time goes."""

import math
import os
import resource
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_gpt.diagnostics.result import AFTER_RUN, NotApplicableError, Outcome, check, failed, judged, listed, passed
from lit_gpt.diagnostics.subject import Subject
from lit_gpt.integrity import WithoutInitialisation
from lit_gpt.loss import IGNORE_INDEX


@check("every parameter moves", "its group, its learning rate, requires_grad, and detach() in the network", AFTER_RUN)
def moves(subject: Subject) -> Outcome:
    """A parameter that a run leaves alone is a part that is not trained."""
    subject.need_learning()
    initial, final = subject.run.initial, subject.run.final
    names = [name for name, p in subject.module.named_parameters() if p.requires_grad]
    still = [name for name in names if torch.equal(initial[name], final[name])]
    steps = subject.run.steps
    return judged(not still, f"{len(names) - len(still)} of {len(names)} moved in {steps} steps" + _tail(still))


def _tail(names: list[str]) -> str:
    return f"; not {listed(names)}" if names else ""


@check("loss falls", "--model.optimizer.lr and warmup, if every other line passes", AFTER_RUN)
def loss_falls(subject: Subject) -> Outcome:
    """After a while a language model has to beat the unigram, which knows how frequent each token is, and then the
    bigram, which knows the token before.
    """
    subject.need_learning()
    run = subject.run
    unigram, bigram = _baselines(subject)
    known = f"unigram {unigram:.3f}, bigram {bigram:.3f}"
    detail = f"{run.first_val:.3f} to {run.last_val:.3f} on validation rows in {run.steps} steps; {known}"
    if run.last_val < unigram:
        return passed(f"{detail}: beaten" if run.last_val < bigram else f"{detail}: the unigram is beaten")
    return judged(run.last_val < run.first_val + 0.02, f"{detail}: not beaten yet")


def _baselines(subject: Subject) -> tuple[float, float]:
    """Nats per token of validation rows under the unigrams and the bigrams of training rows."""
    train, val = subject.rows, subject.run.val_batch
    V = subject.tokens + 1
    ids, targets = _pairs(train)
    unigrams = np.bincount(targets, minlength=V) + 0.5
    unigrams = unigrams / unigrams.sum()
    counts: dict[int, int] = dict(zip(*np.unique(ids * V + targets, return_counts=True), strict=True))
    seen = np.bincount(ids, minlength=V)
    x, y = _pairs(val)
    x, y = np.minimum(x, V - 1), np.minimum(y, V - 1)
    strength = 5.0  # pseudo-counts, spread as the unigrams are
    both = np.array([counts.get(key, 0) for key in x * V + y])
    bigrams = (both + strength * unigrams[y]) / (seen[x] + strength)
    return float(-np.log(unigrams[y]).mean()), float(-np.log(bigrams).mean())


def _pairs(batch: dict[str, Tensor]) -> tuple[np.ndarray, np.ndarray]:
    scored = batch["targets"].cpu() != IGNORE_INDEX
    return batch["input_ids"].cpu()[scored].numpy(), batch["targets"].cpu()[scored].numpy()


@check("evaluation mode", "F.dropout(x, p, self.training), and no self.train() in validation_step", AFTER_RUN)
def evaluation_mode(subject: Subject) -> Outcome:
    """With dropout on, an evaluation is too high and differs each time."""
    first, second = subject.run.evaluation, subject.run.evaluate()
    if not first.batches:
        raise NotApplicableError("there is no validation")
    if first.training:
        return failed(f"in train mode: {listed(sorted(first.training))}")
    differing = [name for name, value in first.metrics.items() if not _same(value, second.metrics.get(name))]
    values = ", ".join(f"{name} {value:.4f}" for name, value in list(first.metrics.items())[:2])
    if differing:
        return failed(f"{differing[0]} is {first.metrics[differing[0]]:.5f}, then {second.metrics[differing[0]]:.5f}")
    return passed(f"the same twice: {values or 'no metric is logged'}")


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
    return judged(before != after, f"{name} is {before:.5f} before the run and {after:.5f} after it")


@check(
    "evaluation is a mean over tokens",
    "sum nats and tokens, and divide once, as lit_gpt.metrics.TokenMetrics does",
    AFTER_RUN,
)
def mean_over_tokens(subject: Subject) -> Outcome:
    """Rows and batches have different numbers of scored targets. A mean of their means, or one that leaves some out,
    changes with the batch size.
    """
    module, found = subject.need_own(), subject.run.evaluation
    if "val/loss" not in found.metrics:
        raise NotApplicableError("validation logs no val/loss")
    nats, tokens = 0.0, 0
    module.eval()
    with subject.untouched(), torch.no_grad():
        for batch in found.batches:
            module.eval()
            scores, _ = module.token_scores(batch)
            nats += float(scores.double().sum())
            tokens += int((batch["targets"] != IGNORE_INDEX).sum())
    expected, logged = nats / max(tokens, 1), found.metrics["val/loss"]
    right = abs(expected - logged) < 1e-3 * max(1.0, abs(expected))
    return judged(right, f"val/loss {logged:.5f}, {expected:.5f} from {tokens:,} tokens one by one")


@check("checkpoint", "buffers and attributes that the network needs must be in state_dict", AFTER_RUN)
def checkpoint(subject: Subject) -> Outcome:
    """A run of days is worth its checkpoints."""
    run = subject.run
    if run.saved is None:
        raise NotApplicableError(f"the run of {run.steps} steps saved none")
    loaded = run.loaded_loss()
    size = run.saved.stat().st_size / 1e6
    detail = f"loss {run.loss_at_save:.6f} when it was saved, {loaded:.6f} from the file of {size:.1f} MB"
    return judged(abs(loaded - run.loss_at_save) < 1e-5 * max(1.0, abs(loaded)), detail)


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
    if subject.module.device.type != "cpu" and differing:
        raise NotApplicableError(f"{detail}; on a GPU the order of sums may differ")
    return judged(not differing, f"{detail}, of which a second run did the last {run.steps - run.saved_step}")


@check("time of a step", "--data.num_workers, or tokens that are prepared once", AFTER_RUN)
def time_of_a_step(subject: Subject) -> Outcome:
    """A network that waits for its data is paid for doing nothing."""
    run = subject.run
    if len(run.step_seconds) < 3:
        raise NotApplicableError("the run is too short to be timed")
    step, wait = median(run.step_seconds[2:] or run.step_seconds), median(run.wait_seconds[2:] or [0.0])
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    detail = f"{1e3 * step:.0f} ms, and {1e3 * wait:.1f} ms for its data; {memory:.1f} GB of memory"
    return judged(wait < 0.05 or wait < step, detail)


@check("size of the whole run", "--model.config.n_layer, n_embd and block_size", AFTER_RUN)
def whole_size(subject: Subject) -> Outcome:
    """A run that does not fit the memory ends at its first step, and one that takes months is not started."""
    module, whole = subject.need_own(), subject.run.setup.whole
    if whole is None:
        raise NotApplicableError("this is the whole set-up")
    large, data = whole()
    large.config.vocab_size = large.config.vocab_size or module.config.vocab_size
    with torch.device("meta"), WithoutInitialisation():
        net = large.build_network()
    parameters = net.num_parameters()
    needed, room = 16 * parameters, _memory(module.device)  # float32: weights, gradients and two moments
    detail = f"{parameters:,} parameters, {needed / 1e9:.2f} GB with gradients and moments, of {room / 1e9:.0f} GB"
    return judged(needed < room, detail + _outlook(subject, net, data))


def _memory(device: torch.device) -> int:
    """Bytes of memory of a device."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _outlook(subject: Subject, net: Any, data: Any) -> str:
    """How long the whole run takes at the operations per second of the short one, if the network counts them."""
    run, steps = subject.run, subject.options.get("whole_steps")
    T = net.config.block_size
    tokens = getattr(data, "tokens_per_step", None) or 32 * T
    each, ours = net.flops_per_token(T), subject.need_own().net.flops_per_token(subject.rows["targets"].size(1))
    if not (steps and each and ours and run.step_seconds):
        return ""
    speed = ours * run.targets_per_batch / median(run.step_seconds)
    return f"; {steps * tokens * each / speed / 3600:.2g} h here at the {speed / 1e9:.1f} GFLOP/s of the small one"
