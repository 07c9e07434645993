"""A norm that does nothing: as small as it must be in each dtype, and no smaller than the dtype can hold."""

import pytest
import torch
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3RMSNorm

from mha2gqa.targets.latent.linear import EPS, Linear, linear

TOKENS, INPUTS, LATENT = 256, 1024, 64


def error(dtype: torch.dtype, norm: Linear) -> float:
    """How far the host's norm is from the identity, as a share of what it should give; a projection before it."""
    generator = torch.Generator().manual_seed(0)
    x_TX = torch.randn(TOKENS, INPUTS, generator=generator)
    weight_CX = torch.randn(LATENT, INPUTS, generator=generator) / INPUTS**0.5
    wanted_TC = x_TX @ weight_CX.T
    host = DeepseekV3RMSNorm(LATENT)
    with torch.no_grad():
        host.weight.fill_(norm.gain)
        given = (x_TX / norm.lift).to(dtype) @ (weight_CX * norm.lift * norm.factor).to(dtype).T
        found_TC = host.to(dtype)(given).float()
    return float((found_TC - wanted_TC).norm() / wanted_TC.norm())


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-6), (torch.bfloat16, 8e-3), (torch.float16, 4e-3)])
def test_the_norm_does_nothing(dtype: torch.dtype, most: float) -> None:
    assert error(dtype, linear(dtype)) < most


def test_bf16_loses_no_more_than_rounding() -> None:
    generator = torch.Generator().manual_seed(0)
    x_TX, weight_CX = torch.randn(TOKENS, INPUTS, generator=generator), torch.randn(LATENT, INPUTS, generator=generator)
    wanted = x_TX @ weight_CX.T
    rounded = (x_TX.bfloat16() @ weight_CX.bfloat16().T).float()
    assert error(torch.bfloat16, linear(torch.bfloat16)) < 1.5 * float((rounded - wanted).norm() / wanted.norm())


def test_fp16_needs_a_size_of_its_own() -> None:
    chosen = linear(torch.float16)
    assert error(torch.float16, Linear(linear(torch.float32).size, 1.0)) > 0.5, "nothing is left of what is so small"
    assert error(torch.float16, Linear(chosen.size, 1.0)) > 3 * error(torch.float16, chosen), (
        "weights have to be lifted"
    )
    assert error(torch.float16, Linear(2.0**-2, chosen.lift)) > 3 * error(torch.float16, chosen), "larger is not linear"


def test_the_error_is_half_the_square_of_the_size() -> None:
    """Of a token of mean size nothing is lost: the gain makes up for it."""
    size = 0.1
    host = DeepseekV3RMSNorm(LATENT)
    norm = Linear(size, 1.0)
    even_C = torch.ones(1, LATENT)
    with torch.no_grad():
        host.weight.fill_(norm.gain)
        of_mean_size, louder = (host(even_C * norm.factor * times) / times for times in (1.0, 2.0))
    torch.testing.assert_close(of_mean_size, even_C)
    assert float((louder - 1).abs().max()) == pytest.approx(1.5 * size**2, rel=0.05)
    assert norm.factor == pytest.approx(size * EPS**0.5)
