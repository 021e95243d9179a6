"""R-Drop (Wu et al. 2021): two passes with different dropout learn the targets and to agree with each other.

Against overfitting on a small corpus, for twice the time of a step.
"""

from functools import partial

import torch
from torch import Tensor

from lit_gpt.loss import IGNORE_INDEX, Head, by_hand, chunk_rows, summed_in_chunks


def r_drop_sum(
    hidden: Tensor,
    head: Head,
    weights: list[Tensor],
    targets: Tensor,
    vocab_size: int,
    shift: Tensor | None = None,
    *,
    weight: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Half the loss of R-Drop (Wu et al. 2021): two passes with different dropout learn the targets and to agree.

    Args:
        hidden: Final hidden states of both passes, (2, B, T, C).
        head: As in `cross_entropy_sum`, like `weights`, `targets`, `vocab_size` and `shift`.
        weight: The paper's alpha.

    Returns:
        Sums over the scored targets, in nats: the mean cross-entropy of the passes p and q plus
        weight * (KL(p||q) + KL(q||p)) / 4, differentiable; that cross-entropy alone; the mean of the two KL.
    """
    measure, rows = by_hand(partial(_r_drop_rows, weight=weight), shift), chunk_rows(2 * vocab_size, hidden)
    loss, nats, kl = summed_in_chunks(measure, hidden.flatten(1, 2), head, weights, targets.flatten(), rows)
    return loss, nats, kl


def _r_drop_rows(logits: Tensor, targets: Tensor, grad: Tensor, weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """R-Drop's loss of some targets, their cross-entropy and KL, summed; the loss's gradient goes into ``grad``.

    With p, q the softmax of z, z' and y the target: dCE/dz = p - y, dKL(p||q)/dz = p * (log p - log q - KL(p||q)),
    dKL(q||p)/dz = p - q.
    """
    scored, place = targets != IGNORE_INDEX, targets.clamp(min=0).expand(2, -1)[..., None]  # (N,), (2, N, 1)
    logs = logits.log_softmax(-1)
    nats = -(logs.gather(-1, place)[..., 0] * scored).sum() / 2
    apart = logs[0] - logs[1]  # (N, V)
    p, q = probs = logs.exp_()
    with torch.autocast(logits.device.type, enabled=False):  # which would round a product of vectors
        kl = torch.stack((torch.linalg.vecdot(p, apart), -torch.linalg.vecdot(q, apart)))  # (2, N)
    share = weight / 4
    slope = probs * ((1 - kl) * share + 0.5)[..., None]  # (2, N, V)
    slope[0].addcmul_(p, apart, value=share).sub_(q, alpha=share)
    slope[1].addcmul_(q, apart, value=-share).sub_(p, alpha=share)
    slope.scatter_add_(-1, place, torch.full_like(slope[..., :1], -0.5))
    torch.mul(slope, scored[:, None], out=grad)
    mean_kl = (kl * scored).sum() / 2
    return nats + weight / 2 * mean_kl, nats, mean_kl
