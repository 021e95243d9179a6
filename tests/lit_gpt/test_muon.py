"""Newton-Schulz steps bring singular values near one, the same on the small square as on the matrix itself."""

import pytest
import torch

from lit_gpt import muon
from lit_gpt.muon import orthogonalize


@pytest.mark.parametrize("bfloat16", [True, False])
@pytest.mark.parametrize("shape", [(3, 32, 16), (2, 16, 32), (2, 16, 20)])
def test_orthogonalize_brings_singular_values_near_one(
    bfloat16: bool, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(muon, "has_bfloat16", lambda _: bfloat16)
    torch.manual_seed(0)
    update = orthogonalize(torch.randn(shape))
    assert update.dtype == (torch.bfloat16 if bfloat16 else torch.float32)
    values = torch.linalg.svdvals(update.float())
    assert values.min() > (0.5 if shape != (2, 16, 20) else 0.3)
    assert values.max() < 1.4


@pytest.mark.parametrize(("decades", "apart"), [(0, 1e-4), (3, 1e-4), (6, 2e-4)])
def test_steps_on_the_square_equal_steps_on_the_matrix(decades: int, apart: float) -> None:
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(2, 64, 256), full_matrices=False)
    x = left * torch.logspace(0, -decades, 64) @ right
    x = x / x.norm(dim=(-2, -1), keepdim=True)
    torch.testing.assert_close(muon._newton_schulz_on_gram(x, 5), muon._newton_schulz(x, 5), rtol=0, atol=apart)
    exact = muon._newton_schulz(x.double(), 5)
    torch.testing.assert_close(muon._newton_schulz_on_gram(x, 5).double(), exact, rtol=0, atol=apart)
