"""The oracle of latent attention: a random MLA model written as MHA, its heads disguised by random gauge factors.

It computes what the MLA model does, and its heads look unrelated. The conversion has to find the latent again, at the
width that was planted and above; the rotary key is known.
"""

import pytest
import torch
from transformers import PreTrainedModel

from mha2gqa.families.attention import gather, scatter
from mha2gqa.heads.attention import AttentionHeads
from mha2gqa.refine.student import install, own_tensors
from mha2gqa.targets.latent.form import RotaryKey
from mha2gqa.targets.latent.host import LatentHost, LatentSource
from mha2gqa.targets.latent.rope import free_key
from tests.families.gauge import disguised, shuffled, unmerged
from tests.families.tiny import tiny_config, tiny_model
from tests.targets.latent.models import architecture, fitted_host
from tests.targets.latent.test_exact import logits

PLANTED = 12
CASES = {
    "half, partial": ("phi3", {"rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 1e4}}),
    "interleaved, partial, biases": ("glm", {}),
    "all rows rotated": ("llama", {}),
}


def plant(model: PreTrainedModel, source: LatentSource, generator: torch.Generator) -> None:
    """Write one rotary key and one latent into all heads of every layer."""
    for layer in source.layers:
        own = own_tensors(model, layer)
        whole = unmerged(layer, own)
        heads = gather(whole, own)
        moved, groups = shuffled(disguised(_shared(heads, generator), generator), generator)
        install(model.get_submodule(layer.module), scatter(whole, moved, groups, own))


def _shared(heads: AttentionHeads, generator: torch.Generator) -> AttentionHeads:
    count, width, inputs = heads.k_KEX.shape
    turned, k_KEX = heads.rotary.width, heads.k_KEX.clone()

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * 0.3

    latent_CX = random(PLANTED, inputs)
    k_KEX[:, :turned] = heads.k_KEX[:1, :turned]
    k_KEX[:, turned:] = random(count, width - turned, PLANTED) @ latent_CX
    v_KFX = random(*heads.v_KFX.shape[:2], PLANTED) @ latent_CX
    return AttentionHeads(**{**vars(heads), "k_KEX": k_KEX, "v_KFX": v_KFX})


def planted_key(source: LatentSource) -> RotaryKey:
    """Every plane once."""
    planes = len(source.rotary.frequencies)
    gains = torch.zeros(planes, 4, dtype=torch.float64)
    gains[:, 0] = 1
    return free_key(source.rotary, [gains], planes, theta=source.theta, context=source.context)


@pytest.mark.parametrize("case", CASES)
def test_the_planted_model_is_found_again(case: str) -> None:
    model_type, overrides = CASES[case]
    model = tiny_model(tiny_config(model_type, **overrides))
    source = LatentSource.of(architecture(model.config))
    plant(model, source, torch.Generator().manual_seed(3))
    wanted, key = logits(model), planted_key(source)
    size = wanted.abs().max().item()
    for latent in (PLANTED, PLANTED + 4):
        found = logits(fitted_host(model, LatentHost(source, key, latent)))
        assert (found - wanted).abs().max() < 1e-3
    too_few = logits(fitted_host(model, LatentHost(source, key, PLANTED - 4)))
    assert (too_few - wanted).abs().max() > 0.02 * size
