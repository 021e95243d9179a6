"""Which of torch's attention kernels a GPU takes, where torch's own choice is slow."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

#: cuDNN's kernel before FlashAttention 2, and then torch's other ones, for what the first two cannot do.
CUDNN_FIRST = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
#: The compute capability of H100 and H200. There, by reports, cuDNN's kernel is faster than FlashAttention 2, elsewhere
#: slower. `benchmarks.gpu_micro` times both on the GPU that it runs on.
HOPPER = 9
#: The first compute capability for which torch builds FlashAttention.
AMPERE = 8
#: FlashAttention's largest head.
FLASH_MAX_HEAD_SIZE = 256


def compute_capability(device: torch.device) -> int:
    """The major number of a GPU's compute capability."""
    return int(torch.cuda.get_device_properties(device).major)  # which, in compiled code, is a constant


def fastest_kernel(q: Tensor) -> AbstractContextManager[None]:
    """A context in which attention of queries like ``q`` takes the fastest kernel.

    On an H100 or H200 that is cuDNN's, in training. It prepares itself for every new shape, and training has one.
    """
    if q.is_cuda and torch.is_grad_enabled() and compute_capability(q.device) == HOPPER:
        return sdpa_kernel(CUDNN_FIRST, set_priority=True)
    return nullcontext()


def groups_queries(q: Tensor, mask: Tensor | None) -> bool:
    """Whether a fast kernel shares keys among the heads of queries like ``q``.

    If not, torch would take its slowest kernel, matmuls and softmax with all scores in memory. Repeating the keys for
    one of the fast kernels costs less.
    """
    is_half = q.dtype in (torch.float16, torch.bfloat16)
    is_flash = is_half and mask is None and q.size(-1) <= FLASH_MAX_HEAD_SIZE
    return is_flash and compute_capability(q.device) >= AMPERE
