"""Attention received, held against a loop over tokens."""

import pytest
import torch

from mha2gqa.errors import CalibrationError
from mha2gqa.heads.metric import Full
from mha2gqa.refine.latent.statistics import ReceivedMoment, gather_received
from mha2gqa.refine.statistics import gather_statistics
from mha2gqa.targets.latent.host import LatentSource
from tests.families.oracle import input_ids
from tests.families.tiny import tiny_config, tiny_model
from tests.targets.latent.models import architecture

BATCHES = [input_ids(40, seed=seed) for seed in range(3)]


@pytest.mark.parametrize("overrides", [{}, {"attention_bias": True}], ids=["plain", "biases"])
@torch.no_grad()
def test_tokens_count_with_the_attention_they_receive(overrides: dict[str, bool]) -> None:
    model = tiny_model(tiny_config("llama", num_key_value_heads=2, **overrides))
    source = LatentSource.of(architecture(model.config))
    found = gather_received(model, source.layers, BATCHES, lambda *_: None)
    assert model.config._attn_implementation == "sdpa"
    evenly = gather_statistics(model, source.layers, BATCHES, lambda *_: None)
    model.set_attn_implementation("eager")
    for number, layer in enumerate(source.layers):
        inputs, counts = [], []
        for batch in BATCHES:
            outputs = model(batch, output_attentions=True, output_hidden_states=True)
            inputs.append(model.model.layers[number].input_layernorm(outputs.hidden_states[number]).flatten(0, 1))
            counts.append(outputs.attentions[number].sum(2).mean(1).flatten())
        x_NX, count_N = torch.cat(inputs).double(), torch.cat(counts).double()
        assert float(count_N.sum()) == pytest.approx(sum(batch.numel() for batch in BATCHES))
        if layer.has_bias:
            x_NX = torch.cat([x_NX, torch.ones_like(x_NX[:, :1])], 1)
        wanted = (x_NX * count_N[:, None]).T @ x_NX / count_N.sum()
        tokens, width = len(x_NX), len(wanted)
        even = torch.eye(width, dtype=wanted.dtype) * wanted.trace() / width
        moment = found[layer.module].inputs
        assert isinstance(moment, Full)
        shrunk = (wanted * tokens + even * width) / (tokens + width)
        torch.testing.assert_close(moment.moment_XX, shrunk, rtol=1e-4, atol=1e-6)
        queries, as_ever = found[layer.module].query_inputs, evenly[layer.module].query_inputs
        assert isinstance(queries, Full) and isinstance(as_ever, Full)
        torch.testing.assert_close(queries.moment_XX, as_ever.moment_XX, rtol=1e-4, atol=1e-6)


def test_without_text_there_is_no_moment() -> None:
    source = LatentSource.of(architecture(tiny_config("llama")))
    with pytest.raises(CalibrationError, match="not run"):
        ReceivedMoment(source.layers[0]).metric()


def test_attention_weights_are_asked_for() -> None:
    model = tiny_model(tiny_config("llama"))
    source = LatentSource.of(architecture(model.config))
    moment = ReceivedMoment(source.layers[0])
    handles = moment.watch(model)
    with pytest.raises(CalibrationError, match="attention weights"):
        model(BATCHES[0])  # not "eager"
    assert all(handle.remove() is None for handle in handles)
