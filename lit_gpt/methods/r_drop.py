"""R-Drop (Wu et al. 2021): two passes with different dropout learn the targets and to agree with each other.

Against overfitting on a small corpus, for twice the time of a step.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lit_gpt.loss import IGNORE_INDEX, LossInputs, sum_in_chunks


def r_drop_sum(hidden: Tensor, inputs: LossInputs, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """Half the loss of R-Drop (Wu et al. 2021): two passes with different dropout learn the targets and to agree.

    Args:
        hidden: Final hidden states of both passes, (2, B, T, C).
        inputs: The head, its weights and the targets, as in `cross_entropy_sum`.
        alpha: The paper's weight of the distance between the passes.

    Returns:
        Sums over the scored targets, in nats: the mean cross-entropy of the passes p and q plus
        alpha * (KL(p||q) + KL(q||p)) / 4, differentiable; that cross-entropy alone; the mean of the two KL.
    """
    loss, nats, kl = sum_in_chunks(lambda logits, targets: _RDrop.apply(logits, targets, alpha), hidden, inputs)
    return loss, nats, kl


class _RDrop(torch.autograd.Function):
    """R-Drop's loss over logits (2, N, V) in float32, with its gradient written out: by autograd, which goes over the
    logits some 25 times, the loss takes 1.17 times as long.

    Let p, q be the softmax of the logits z, z' of the two passes, and y the target as a one-hot vector. Then

        d CE(z)    / dz  = p - y
        d KL(p||q) / dz  = p * (log p - log q - KL(p||q))
        d KL(q||p) / dz  = p - q

    and the same with p and q, z and z' exchanged.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of all targets (N,), their cross-entropy and their KL, summed."""
        scored, place = targets != IGNORE_INDEX, targets.clamp(min=0).expand(2, -1)[..., None]  # (N,), (2, N, 1)
        logs = logits.log_softmax(-1)
        nats = -(logs.gather(-1, place)[..., 0] * scored).sum() / 2
        apart = logs[0] - logs[1]  # log p - log q, (N, V)
        p, q = probs = logs.exp_()
        with torch.autocast(logits.device.type, enabled=False):  # which would round a product of vectors
            kl = torch.stack((torch.linalg.vecdot(p, apart), -torch.linalg.vecdot(q, apart)))  # (2, N)
        share = alpha / 4
        grad = probs * ((1 - kl) * share + 0.5)[..., None]  # (2, N, V)
        grad[0].addcmul_(p, apart, value=share).sub_(q, alpha=share)
        grad[1].addcmul_(q, apart, value=-share).sub_(p, alpha=share)
        grad.scatter_add_(-1, place, torch.full_like(grad[..., :1], -0.5))
        ctx.save_for_backward(grad, scored)
        mean_kl = (kl * scored).sum() / 2
        ctx.mark_non_differentiable(nats, mean_kl)
        return nats + alpha / 2 * mean_kl, nats, mean_kl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, *_: Tensor) -> tuple[Tensor, None, None]:
        """The gradient of the loss, in place: one pass over the logits less, and torch refuses to come here again."""
        grad, scored = ctx.saved_tensors
        return grad.mul_((scored * scale)[:, None]), None, None
