"""One optimizer with an algorithm for each parameter group, and learning-rate schedules as pure functions of the step.

Matrices inside the network may be updated by Muon (Keller Jordan, 2024): momentum, then the nearest orthogonal matrix
by Newton-Schulz steps. Everything else is updated by AdamW. Both are in one ``torch.optim.Optimizer``, because
Lightning would need manual optimization for two, and would count every step twice.
"""

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.sgd import sgd

from datamodules.errors import UserError
from lit_gpt.bounds import invalid_numbers
from lit_gpt.distributed import local
from lit_gpt.muon_shared import Updates, begin_updates, layouts
from lit_gpt.protocols import Network

GROUPS = ("matrices", "embeddings", "head", "vectors")


@dataclass
class OptimizerConfig:
    """Algorithm, learning rates, weight decay and schedule.

    Parameters are in four groups: ``matrices`` (two-dimensional weights inside the network), ``embeddings`` (of tokens,
    their parts, positions and n-grams), ``head`` (the LM head, when it is not tied) and ``vectors`` (biases, gains,
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
    """Weight decay of matrices, embeddings and head; biases and gains have none. It is decoupled from the gradient, as
    in AdamW (an optimizer class of torch does it in its own way)."""
    group_weight_decay: dict[str, float] = field(default_factory=dict)
    """Weight decay by group, where it differs from ``weight_decay``. ``vectors: 0.1`` gives biases and gains one
    too.
    """
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of the moving averages of the gradient and of its square."""
    momentum: float = 0.95
    """Momentum of Muon (Nesterov) and of sgd (plain, 0 for none)."""
    args: dict[str, Any] = field(default_factory=dict)
    """Further keyword arguments for an optimizer given by its dotted path."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """Shape of the learning rate's decay. ``linear`` with ``decay_fraction`` 0.4 is warmup-stable-decay."""
    warmup: float = 0.0
    """Length of the linear warmup: a number of steps if 1 or more, a fraction of the run if below 1."""
    decay_fraction: float = 1.0
    """Fraction of the run after warmup in which the learning rate decays, at its end. Before that it is constant."""
    final_lr: float = 0.0
    """Learning rate at the end of the decay, as a fraction of the peak."""

    def __post_init__(self) -> None:
        for problem in invalid_numbers(self, {}, {}):
            raise UserError(f"optimizer.{problem}")
        self.betas = (float(self.betas[0]), float(self.betas[1]))
        if "." in self.kind:
            _import_optimizer(self.kind)
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
            values = f"{low} or more" if high == math.inf else f"{low} to {high}"
            if not low <= getattr(self, name) <= high:
                raise UserError(f"optimizer.{name} {getattr(self, name)} is out of range: give {values}.")
        self._check_groups()

    def _check_groups(self) -> None:
        for name in ("group_lr", "group_weight_decay"):
            for group, value in getattr(self, name).items():
                if group not in GROUPS:
                    raise UserError(f"optimizer.{name} names no group {group!r}: use {', '.join(GROUPS)}.")
                if not value >= 0:
                    raise UserError(f"optimizer.{name}.{group} {value} is out of range: give 0 or more.")


def lr_factor(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """Learning rate at optimizer step ``step`` (from 0) of ``total_steps``, as a fraction of the peak.

    Warmup rises from 1/warmup to 1. The decay starts from 1 and would reach ``final_lr`` one step after the last.
    """
    warmup = config.warmup if config.warmup >= 1 or config.warmup == 0 else config.warmup * total_steps
    if step < warmup:
        return (step + 1) / math.ceil(warmup)
    if config.schedule == "constant":
        return 1.0
    decay_steps = max(1.0, (total_steps - warmup) * config.decay_fraction)
    progress = min(1.0, max(0.0, (step - (total_steps - decay_steps)) / decay_steps))
    remaining = 1 - progress if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return config.final_lr + (1 - config.final_lr) * remaining


@torch.no_grad()
def parameter_groups(net: Network) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Every trainable parameter of ``net`` exactly once, under one of ``GROUPS``.

    The head's are those of `Network.head_weights`. A tied LM head is in ``embeddings``.
    """
    embeddings = {id(m.weight) for m in net.modules() if isinstance(m, nn.Embedding)}
    weights = net.head_weights()  # kept, so that no id is of a tensor that is gone
    heads = {id(weight) for weight in weights}
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


def build_optimizer(net: Network, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer of ``config`` over all parameters of ``net``."""
    groups = [_group(name, named, config) for name, named in parameter_groups(net).items() if named]
    if "." in config.kind:
        for group in groups:
            del group["algorithm"]  # torch's own classes have one algorithm for all groups
        try:
            return _import_optimizer(config.kind)(groups, lr=config.lr, **config.args)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"optimizer.args does not fit {config.kind} ({error}): give its own keyword arguments."
            ) from error
    return GroupedOptimizer(groups, betas=config.betas, momentum=config.momentum)


def _group(name: str, named: list[tuple[str, nn.Parameter]], config: OptimizerConfig) -> dict[str, Any]:
    algorithm = "adamw" if config.kind == "muon" and name != "matrices" else config.kind
    decay = 0.0 if name == "vectors" else config.weight_decay
    return {
        "params": [parameter for _, parameter in named],
        "name": name,
        "algorithm": algorithm,
        "lr": config.group_lr.get(name, config.lr),
        "weight_decay": config.group_weight_decay.get(name, decay),
    }


def _import_optimizer(path: str) -> Callable[..., torch.optim.Optimizer]:
    module, _, name = path.rpartition(".")
    try:
        optimizer = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"optimizer.kind {path!r} cannot be imported ({error}): check its spelling.") from error
    if not (isinstance(optimizer, type) and issubclass(optimizer, torch.optim.Optimizer)):
        raise ValueError(f"optimizer.kind {path!r} is no optimizer: give a class such as torch.optim.NAdam.")
    return optimizer


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The learning rate of each group as a metric ``lr/NAME``, with the names of `OptimizerConfig.group_lr`.

    Groups of your own optimizer may have no name; their metrics are ``lr/0``, ``lr/1`` and so on.
    """
    return {f"lr/{group.get('name', number)}": group["lr"] for number, group in enumerate(optimizer.param_groups)}


class GroupedOptimizer(torch.optim.Optimizer):
    """AdamW, Muon or SGD for each parameter group (key ``algorithm``), as one optimizer with one state.

    Where ``torch.distributed`` runs with several processes, they share Muon's work: see `lit_gpt.muon_shared`. Then all
    of them must call ``step`` together, with the same gradients (as DDP makes them) or each with its shard of them.
    """

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
        begun = []
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                begun.append(_ALGORITHMS[group["algorithm"]](self, group, parameters))
        for finish in begun:
            if finish is not None:
                finish()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `torch.optim.Optimizer`. That leaves the step counters on the CPU, where the file was read; the fused
        AdamW wants them on the device of their parameters.
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
        buffers = [self.state[p].get("momentum_buffer") for p in parameters]  # torch fills in those that are None
        # Decoupled weight decay, as in AdamW; torch's own would go through the momentum.
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

    def _muon(self, group: dict[str, Any], parameters: list[Tensor]) -> Callable[[], None]:
        """Begin the update, and return a function that ends it: other groups are updated while results are sent."""
        begun = [(matrices, self._begin_muon(group, matrices)) for matrices in layouts(parameters)]

        def finish() -> None:
            for matrices, updates in begun:
                for indices, some in updates:
                    self._add_updates(group, [matrices[i] for i in indices], some)

        return finish

    def _begin_muon(self, group: dict[str, Any], matrices: list[Tensor]) -> Updates:
        """Update the moving averages of the gradients, and begin to orthogonalise each gradient mixed with its new
        average.
        """
        for matrix in matrices:
            if "momentum_buffer" not in self.state[matrix]:
                self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
        buffers = [local(self.state[p]["momentum_buffer"]) for p in matrices]
        gradients = [local(p.grad) for p in matrices if p.grad is not None]
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])

        def directions(indices: Sequence[int]) -> list[Tensor]:
            some = [gradients[i] for i in indices]
            return list(torch._foreach_lerp(some, [buffers[i] for i in indices], group["momentum"]))

        return begin_updates(matrices, directions)

    def _add_updates(self, group: dict[str, Any], matrices: list[Tensor], updates: list[Tensor]) -> None:
        # Keller Jordan's scale: tall matrices get a larger step, so that one learning rate suits all shapes.
        rate = group["lr"] * math.sqrt(max(1.0, matrices[0].size(0) / matrices[0].size(1)))
        parts = [local(matrix) for matrix in matrices]
        torch._foreach_mul_(parts, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parts, updates, alpha=-rate)


#: Each updates some parameters. Muon returns a function that ends its update.
_ALGORITHMS: dict[str, Callable[[GroupedOptimizer, dict[str, Any], list[Tensor]], Callable[[], None] | None]] = {
    "adamw": GroupedOptimizer._adamw,
    "muon": GroupedOptimizer._muon,
    "sgd": GroupedOptimizer._sgd,
}


class StepSchedule(LambdaLR):
    """``lr_factor`` at every optimizer step. A resumed run has the learning rates of its own command line, not those of
    the checkpoint.

    Lightning restores optimizer and schedule from a checkpoint. ``load_state_dict`` takes only the step from it and
    restores every hyper-parameter of the groups as it was at construction, so that ``--model.optimizer.lr`` has an
    effect when a run resumes.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, config: OptimizerConfig, total_steps: int) -> None:
        super().__init__(optimizer, lambda step: lr_factor(step, total_steps, config))
        self._hyper_parameters = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """The step alone."""
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to the step of the checkpoint, with the learning rates given at construction."""
        self.last_epoch = state_dict["last_epoch"]
        groups = self.optimizer.param_groups
        for group, at_construction, base in zip(groups, self._hyper_parameters, self.base_lrs, strict=True):
            group.update(at_construction)
            group["lr"] = base * self.lr_lambdas[0](self.last_epoch)
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]
