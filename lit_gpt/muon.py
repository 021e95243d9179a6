"""Muon's update: the nearest orthogonal matrix, computed by matmuls alone (Newton-Schulz iteration)."""

from functools import cache

import torch
from torch import Tensor

#: Keller Jordan's coefficients of the quintic polynomial A x + B x^3 + C x^5. Five steps bring singular values to
#: between 0.7 and 1.2, rather than to 1; in exchange small ones grow by 3.4 times a step.
A, B, C = 3.4445, -4.7750, 2.0315


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Bring the singular values of a stack of matrices (n, rows, columns) to about 1.

    Five quintic Newton-Schulz steps with the coefficients of Keller Jordan's Muon, as in ``torch.optim.Muon``, but
    for all matrices of a shape at once, and in the precision of `working_dtype`. The matrices must be whole and plain
    tensors: the iteration on x x^T gives wrong numbers on DTensors. `lit_gpt.muon_shared` makes sharded ones whole.
    """
    if hasattr(matrices, "placements"):
        raise TypeError("orthogonalize needs whole matrices and got a DTensor: use lit_gpt.muon_shared.begin_updates")
    x = matrices.to(working_dtype(matrices))
    is_tall = x.size(-2) > x.size(-1)
    if is_tall:
        x = x.mT  # so that x x^T has the smaller of the two sizes
    # The Frobenius norm is at least the largest singular value, so all are at most 1, where the iteration converges.
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    on_gram = _is_on_gram(x.size(-2), x.size(-1), x.dtype)
    x = _newton_schulz_on_gram(x, steps) if on_gram else _newton_schulz(x, steps)
    return x.mT if is_tall else x


def working_dtype(matrices: Tensor) -> torch.dtype:
    """The precision of the steps: float64 for float64 matrices, else bfloat16 where hardware has it, or float32."""
    if matrices.dtype == torch.float64:
        return torch.float64
    return torch.bfloat16 if has_bfloat16(matrices.device) else torch.float32


def newton_schulz_flops(rows: int, columns: int, dtype: torch.dtype = torch.bfloat16, steps: int = 5) -> int:
    """Floating-point operations of the steps for one matrix, counted as 2 for each multiplication with an addition."""
    small, large = sorted((rows, columns))
    square, wide = 2 * small**3, 2 * small**2 * large  # products of two squares, and of a square with the matrix
    if _is_on_gram(small, large, dtype):
        return 2 * wide + square + 4 * square * (steps - 1)
    return steps * (2 * wide + square)


def _is_on_gram(rows: int, columns: int, dtype: torch.dtype) -> bool:
    """Whether the iteration works on x x^T. For square matrices that gains nothing. It needs float32, which can still
    tell the squares of small singular values apart.
    """
    return dtype == torch.float32 and columns >= 2 * rows


def _newton_schulz(x: Tensor, steps: int) -> Tensor:
    """`steps` times x <- A x + (B gram + C gram^2) x, with gram = x x^T."""
    for _ in range(steps):
        gram = x @ x.mT  # (n, rows, rows)
        x = torch.baddbmm(x, _higher_terms(gram), x, beta=A)
    return x


def _newton_schulz_on_gram(x: Tensor, steps: int) -> Tensor:
    """The same result by matmuls of gram = x x^T, which is smaller than x where x is wide.

    A step multiplies x by a polynomial of gram. The product of all steps' polynomials is computed first and applied to
    x once: 1.9 times as fast for 256 x 1024. In float32 the results differ by 2e-6 for random matrices, and by about
    1e-4 where singular values span six decades, because gram has their squares.
    """
    gram = x @ x.mT  # (n, rows, rows)
    factor = product = _step_factor(gram)
    for _ in range(steps - 1):
        gram = factor @ gram @ factor  # that of factor @ x, because factor is symmetric
        factor = _step_factor(gram)
        product = factor @ product
    return product @ x


def _step_factor(gram: Tensor) -> Tensor:
    """The matrix by which a step multiplies x: A * identity + B * gram + C * gram^2."""
    factor = _higher_terms(gram)
    factor.diagonal(dim1=-2, dim2=-1).add_(A)
    return factor


def _higher_terms(gram: Tensor) -> Tensor:
    """B * gram + C * gram^2."""
    return torch.baddbmm(gram, gram, gram, beta=B, alpha=C)


@cache
def has_bfloat16(device: torch.device) -> bool:
    """Whether ``device`` multiplies bfloat16 matrices in hardware.

    A CPU that emulates them takes 5 to 25 times as long as in float32. CUDA devices before Ampere emulate them too.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return True
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
