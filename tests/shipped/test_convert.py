"""The contract of `convert` for families whose class ships with the result, held against transformers' own class.

For every family and every G: the logits of G = K are the original's, those of G < K are the oracle's (its heads
replaced by the means of their groups) with eager attention and SDPA, generation with the cache is that without, and
the caches of self- and cross-attention shrink by exactly the ratio. What the files do where mha2gqa is not installed
is `test_alone.py`'s.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import EncoderDecoderCache, PreTrainedModel

from mha2gqa import ConvertOptions, convert
from mha2gqa.errors import GroupsError
from mha2gqa.model.load import load_model

from .subjects import HEADS, SUBJECTS, WIDTH, Subject, averaged

_NEW = 5
_ROUNDING = 1e-5
"""Of the largest logit, or of one where that is smaller."""


@pytest.mark.parametrize("subject", SUBJECTS, ids=str)
def test_the_result_is_the_source_with_shared_heads(subject: Subject, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    native = subject.native()
    native.save_pretrained(tmp_path / "source")
    same = converted(tmp_path, HEADS)
    assert largest_difference(subject, same, native) == 0
    for groups in (2, 1):
        result = converted(tmp_path, groups)
        oracle = averaged(native, {"decoder": groups, "cross": groups})
        assert largest_difference(subject, oracle, native) > 1e-2, "the conversion changed nothing"
        for implementation in ("sdpa", "eager") if subject.sdpa else ("eager",):
            for model in (result, oracle):  # what padding reads is up to the implementation
                model.set_attn_implementation(implementation)
            assert largest_difference(subject, result, oracle) < _ROUNDING
        if subject.generates:
            written, logits = greedy(subject, result, cached=True)
            for model in (result, oracle):
                again, expected = greedy(subject, model, cached=False)
                assert torch.equal(written, again)
                torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max())))
            assert caches(subject, result) == {
                kind: size * groups // HEADS for kind, size in caches(subject, native).items()
            }


@pytest.mark.parametrize("model_type", ["t5", "whisper"])
def test_each_kind_of_attention_has_a_number_of_its_own(model_type: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    subject = next(one for one in SUBJECTS if one.model_type == model_type)
    native = subject.native()
    native.save_pretrained(tmp_path / "source")
    for groups in ({"decoder": 2, "cross": 1}, {"cross": 2}, {"encoder": 1}, {"decoder": 1, "cross": 2, "encoder": 2}):
        result = converted(tmp_path, groups)
        assert largest_difference(subject, result, averaged(native, groups)) < _ROUNDING
        before = caches(subject, native)
        after = {kind: size * groups.get(kind, HEADS) // HEADS for kind, size in before.items()}
        assert caches(subject, result) == after


def test_a_kind_of_attention_that_the_model_does_not_have(tmp_path: Path) -> None:
    for model_type in ("gpt2", "bert", "vit"):
        subject = next(one for one in SUBJECTS if one.model_type == model_type)
        subject.native().save_pretrained(tmp_path / model_type)
        with pytest.raises(GroupsError, match="has no cross attention"):
            convert(ConvertOptions(model=str(tmp_path / model_type), groups={"cross": 2}, output=tmp_path / "out"))
        assert not (tmp_path / "out").exists()


def converted(directory: Path, groups: Any) -> PreTrainedModel:
    output = directory / "-".join(map(str, groups.values() if isinstance(groups, dict) else [groups]))
    convert(ConvertOptions(model=str(directory / "source"), groups=groups, output=output, force=True))
    return load_model(output)


@torch.no_grad()
def largest_difference(subject: Subject, one: PreTrainedModel, other: PreTrainedModel) -> float:
    first, second = (model(**subject.forward_inputs()).logits for model in (one, other))
    return float((first - second).abs().max()) / max(1.0, float(second.abs().max()))


@torch.no_grad()
def greedy(subject: Subject, model: PreTrainedModel, *, cached: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens chosen one after the other, the two sequences without padding, and the last logits."""
    fed: dict[str, Any] = {name: tensor for name, tensor in subject.inputs().items() if name != "attention_mask"}
    name = "decoder_input_ids" if subject.seq2seq else "input_ids"
    ids = subject.forward_inputs()[name][:, :4]
    past, read = None, 0
    for _ in range(_NEW):
        output = model(**fed | {name: ids[:, read:]}, past_key_values=past, use_cache=cached)
        past, read = (output.past_key_values, ids.shape[1]) if cached else (None, 0)
        ids = torch.cat([ids, output.logits[:, -1:].argmax(-1)], dim=1)
    if isinstance(past, EncoderDecoderCache):
        lengths = {layer.keys.shape[2] for layer in past.cross_attention_cache.layers}
        assert lengths == {output.encoder_last_hidden_state.shape[1]}, "an encoder's tokens are cached once"
    return ids, output.logits[:, -1]


@torch.no_grad()
def caches(subject: Subject, model: PreTrainedModel) -> dict[str, int]:
    """Bytes of keys and values after one forward pass, by the kind of attention."""
    cache = model(**subject.forward_inputs(), use_cache=True).past_key_values
    both = isinstance(cache, EncoderDecoderCache)
    kinds = (
        {"decoder": cache.self_attention_cache, "cross": cache.cross_attention_cache} if both else {"decoder": cache}
    )
    for kind in kinds.values():
        assert all(layer.keys.shape[-1] == WIDTH for layer in kind.layers)
    return {name: sum(one.keys.nbytes + one.values.nbytes for one in kind.layers) for name, kind in kinds.items()}
