"""One optimizer whose parameter groups choose their rule, and learning-rate schedules as pure functions of the step.

Matrices inside the network may take Muon (Keller Jordan, 2024): momentum, then the nearest orthogonal matrix by
Newton-Schulz steps. Everything else takes AdamW. Both live in one ``torch.optim.Optimizer``, because two optimizers
would force Lightning into manual optimization and count every step twice.
"""

import importlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.sgd import sgd

from datamodules.errors import UserError
from lit_gpt.bounds import wrong_numbers
from lit_gpt.muon import orthogonalize

GROUPS = ("matrices", "embeddings", "head", "vectors")


@dataclass
class OptimizerConfig:
    """Rule, learning rates, decay and schedule.

    Parameters fall into four groups: ``matrices`` (two-dimensional weights inside the network), ``embeddings``
    (tables of tokens, their parts, positions and runs), ``head`` (when it is not tied) and ``vectors`` (biases, gains,
    scalars).
    """

    kind: str = "adamw"
    """``adamw``, ``muon`` (Muon for matrices, AdamW for the rest), ``sgd``, or the dotted path of any torch
    optimizer class.
    """
    lr: float = 1e-3
    """Peak learning rate of every group that ``group_lr`` does not name."""
    group_lr: dict[str, float] = field(default_factory=dict)
    """Peak learning rate by group (matrices, embeddings, head, vectors). Muon's matrices want about 0.02."""
    weight_decay: float = 0.1
    """Weight decay of matrices, embeddings and head, decoupled (with a class of torch's: as that does it). Biases and
    gains do not decay."""
    group_weight_decay: dict[str, float] = field(default_factory=dict)
    """Weight decay by group, where it differs from ``weight_decay`` (``vectors: 0.1`` makes biases and gains decay
    too).
    """
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of the first and second moment."""
    momentum: float = 0.95
    """Momentum of Muon (Nesterov) and of sgd (plain, 0 for none)."""
    args: dict[str, Any] = field(default_factory=dict)
    """Further keyword arguments for an optimizer given by its dotted path."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """Shape of the learning rate's decay. ``linear`` with ``decay_fraction`` 0.4 is warmup-stable-decay."""
    warmup: float = 0.0
    """Linear warmup: steps when 1 or more, else a fraction of the run."""
    decay_fraction: float = 1.0
    """Share of the run after warmup, at its end, in which the learning rate decays; it is constant before."""
    final_lr: float = 0.0
    """Learning rate at the end of the decay, as a fraction of the peak."""

    def __post_init__(self) -> None:
        for problem in wrong_numbers(self, {}, {}):
            raise UserError(f"optimizer.{problem}")
        self.betas = (float(self.betas[0]), float(self.betas[1]))
        if "." in self.kind:
            _class_at(self.kind)
        elif self.kind not in ("adamw", "muon", "sgd"):
            raise UserError(
                f"optimizer.kind {self.kind!r} is unknown: use adamw, muon, sgd or a class such as torch.optim.NAdam."
            )
        elif self.args:
            raise UserError(f"optimizer.args are for a class of torch's, not for {self.kind}: leave them out.")
        for name in {"lr", "weight_decay"} & set(self.args):
            raise UserError(f"optimizer.args has {name}, which has an option of its own: set optimizer.{name}.")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optimizer.betas {self.betas} are out of range: give 0 to below 1.")
        for name, low, high in (
            ("lr", 0, math.inf),
            ("weight_decay", 0, math.inf),
            ("momentum", 0, 1),
            ("warmup", 0, math.inf),
            ("decay_fraction", 0, 1),
            ("final_lr", 0, 1),
        ):
            if not low <= getattr(self, name) <= high:
                raise UserError(f"optimizer.{name} {getattr(self, name)} is out of range: give {low} to {high}.")
        self._check_groups()

    def _check_groups(self) -> None:
        for name in ("group_lr", "group_weight_decay"):
            for group, value in getattr(self, name).items():
                if group not in GROUPS:
                    raise UserError(f"optimizer.{name} names no group {group!r}: use {', '.join(GROUPS)}.")
                if not value >= 0:
                    raise UserError(f"optimizer.{name}.{group} {value} is out of range: give 0 or more.")


def lr_factor(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """The share of the peak learning rate at optimizer step ``step`` (from 0) of ``total_steps``.

    Warmup rises from 1/warmup to 1; the decay is at 1 when it starts and would reach ``final_lr`` one step after the
    last.
    """
    warmup = config.warmup if config.warmup >= 1 or config.warmup == 0 else config.warmup * total_steps
    if step < warmup:
        return (step + 1) / math.ceil(warmup)
    if config.schedule == "constant":
        return 1.0
    decay_steps = max(1.0, (total_steps - warmup) * config.decay_fraction)
    progress = min(1.0, max(0.0, (step - (total_steps - decay_steps)) / decay_steps))
    falling = 1 - progress if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return config.final_lr + (1 - config.final_lr) * falling


def parameter_groups(net: nn.Module) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Every trainable parameter of ``net`` exactly once, under one of ``GROUPS``.

    A tied head counts as the embedding; one of its own is a module's `lm_head`.
    """
    embeddings = {id(m.weight) for m in net.modules() if isinstance(m, nn.Embedding)}
    owned = [getattr(m, "lm_head", None) for m in net.modules()]
    heads = {id(head.weight) for head in owned if isinstance(head, nn.Linear)}
    groups: dict[str, list[tuple[str, nn.Parameter]]] = {name: [] for name in GROUPS}
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            groups[_group_of(parameter, embeddings, heads)].append((name, parameter))
    return groups


def _group_of(parameter: nn.Parameter, embeddings: set[int], heads: set[int]) -> str:
    if id(parameter) in embeddings:
        return "embeddings"
    if parameter.ndim < 2:
        return "vectors"
    return "head" if id(parameter) in heads else "matrices"


def build_optimizer(net: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer of ``config`` over all parameters of ``net``."""
    groups = [_group(name, members, config) for name, members in parameter_groups(net).items() if members]
    if "." in config.kind:
        for group in groups:
            del group["rule"]
        try:
            return _class_at(config.kind)(groups, lr=config.lr, **config.args)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"optimizer.args does not fit {config.kind} ({error}): give its own keyword arguments."
            ) from error
    return GroupedOptimizer(groups, betas=config.betas, momentum=config.momentum)


def _group(name: str, members: list[tuple[str, nn.Parameter]], config: OptimizerConfig) -> dict[str, Any]:
    rule = "adamw" if config.kind == "muon" and name != "matrices" else config.kind
    decay = 0.0 if name == "vectors" else config.weight_decay
    return {
        "params": [parameter for _, parameter in members],
        "name": name,
        "rule": rule,
        "lr": config.group_lr.get(name, config.lr),
        "weight_decay": config.group_weight_decay.get(name, decay),
    }


def _class_at(path: str) -> Callable[..., torch.optim.Optimizer]:
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"optimizer.kind {path!r} cannot be imported ({error}): check its spelling.") from error
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise ValueError(f"optimizer.kind {path!r} is no optimizer: give a class such as torch.optim.NAdam.")
    return found


def describe_groups(optimizer: torch.optim.Optimizer) -> list[str]:
    """Lines for people: what decays and what does not, in tensors and parameters, and the rule of each group."""
    decayed = [p for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]]
    others = [p for g in optimizer.param_groups if not g["weight_decay"] for p in g["params"]]
    lines = [f"weight decay on {_count(decayed)}; none on {_count(others)}"]
    if isinstance(optimizer, GroupedOptimizer):
        rules = (f"{g['name']} {g['rule']} lr {g['lr']:g} decay {g['weight_decay']:g}" for g in optimizer.param_groups)
        lines.append("; ".join(rules))
    return lines


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The rate of each group as a metric, ``lr/NAME`` with the name that ``group_lr`` has for it; of a group without a
    name, of an optimizer of the user's own, ``lr/NUMBER``.
    """
    return {f"lr/{group.get('name', number)}": group["lr"] for number, group in enumerate(optimizer.param_groups)}


def _count(parameters: Iterable[Tensor]) -> str:
    sizes = [p.numel() for p in parameters]
    return f"{len(sizes)} tensors with {sum(sizes):,} parameters"


class GroupedOptimizer(torch.optim.Optimizer):
    """AdamW, Muon or SGD per parameter group (key ``rule``), as one optimizer with one state."""

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float], momentum: float) -> None:
        defaults = {"betas": betas, "momentum": momentum, "eps": 1e-8}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Run ``closure`` (forward and backward) when given, then update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                _RULES[group["rule"]](self, group, parameters)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `torch.optim.Optimizer`, which leaves steps where the file was read, on the CPU; the fused rule wants
        them beside their parameters.
        """
        super().load_state_dict(state_dict)
        for parameter, state in self.state.items():
            if "step" in state:
                state["step"] = state["step"].to(parameter.device)

    def _adamw(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        states = [self.state[p] for p in parameters]
        for parameter, state in zip(parameters, states, strict=True):
            if "exp_avg" not in state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        adamw(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            [],
            [s["step"] for s in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _sgd(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        buffers = [self.state[p].get("momentum_buffer") for p in parameters]
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        sgd(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            buffers,
            weight_decay=0.0,
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
        for parameter, buffer in zip(parameters, buffers, strict=True):
            if buffer is not None:
                self.state[parameter]["momentum_buffer"] = buffer

    def _muon(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for parameter in parameters:
            by_shape[parameter.shape].append(parameter)
        for shape, same in by_shape.items():
            updates = orthogonalize(torch.stack(self._nesterov(group, same)))  # (n, rows, columns)
            rate = group["lr"] * math.sqrt(max(1.0, shape[0] / shape[1]))
            torch._foreach_mul_(same, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(same, list(updates.to(same[0].dtype).unbind()), alpha=-rate)

    def _nesterov(self, group: dict[str, Any], parameters: list[Tensor]) -> list[Tensor]:
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        buffers = [self.state[p]["momentum_buffer"] for p in parameters]
        gradients = [p.grad for p in parameters if p.grad is not None]
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        return list(torch._foreach_lerp(gradients, buffers, group["momentum"]))


_RULES: dict[str, Callable[[GroupedOptimizer, dict[str, Any], list[Tensor]], None]] = {
    "adamw": GroupedOptimizer._adamw,
    "muon": GroupedOptimizer._muon,
    "sgd": GroupedOptimizer._sgd,
}


class StepSchedule(LambdaLR):
    """``lr_factor`` at every optimizer step. A resumed run keeps the rates of its own command line, not those of the
    file.

    Lightning restores optimizer and schedule from a checkpoint; ``load_state_dict`` takes only the step from it and
    puts back every hyper-parameter of the groups, so that ``--model.optimizer.lr`` means what it says.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, config: OptimizerConfig, total_steps: int) -> None:
        super().__init__(optimizer, lambda step: lr_factor(step, total_steps, config))
        self._given = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """The step alone."""
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to the stored step under the rates given at construction."""
        self.last_epoch = state_dict["last_epoch"]
        for group, given, base in zip(self.optimizer.param_groups, self._given, self.base_lrs, strict=True):
            group.update(given)
            group["lr"] = base * self.lr_lambdas[0](self.last_epoch)
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]
