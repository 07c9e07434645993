"""Speeds of the shared rotary key: what the config says is what the host's class turns by."""

from collections.abc import Callable

import pytest
import torch
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3RotaryEmbedding

from mha2gqa.heads.attention import Rotary
from mha2gqa.targets.latent.form import RotaryKey
from mha2gqa.targets.latent.rope import free_key, ladder_key, named_key, portable_keys, repeated_key

PLANES, THETA, CONTEXT = 8, 1e4, 256
ROTARY = Rotary(2 * PLANES, "half", tuple(THETA ** -(plane / PLANES) for plane in range(PLANES)))
GAINS = torch.tensor([[9.0, 5.0, 4.0], [8.0, 3.0, 0.0], [7.0, 2.0, 0.0], *[[1.0, 0.0, 0.0]] * 5])


def free(planes: int) -> RotaryKey:
    return free_key(ROTARY, [GAINS, GAINS], planes, theta=THETA, context=CONTEXT)


KEYS: dict[str, Callable[[], RotaryKey]] = {
    "free": lambda: free(5),
    "free, one plane": lambda: free(1),
    "all planes": lambda: ladder_key(ROTARY, PLANES, PLANES),
    "the fastest": lambda: ladder_key(ROTARY, 3, 3),
    "finer": lambda: ladder_key(ROTARY, 6, 3),
    "twice": lambda: repeated_key(ROTARY, 6, 3, context=CONTEXT),
    "finer, twice": lambda: repeated_key(ROTARY, 12, 3, context=CONTEXT),
    "all twice": lambda: repeated_key(ROTARY, 2 * PLANES, PLANES, context=CONTEXT),
    "one twice": lambda: repeated_key(ROTARY, 2, 1, context=CONTEXT),
}


def turned_by(key: RotaryKey) -> torch.Tensor:
    config = DeepseekV3Config(
        qk_rope_head_dim=key.width, max_position_embeddings=CONTEXT, rope_parameters=dict(key.parameters)
    )
    embedding = DeepseekV3RotaryEmbedding(config)
    assert embedding.attention_scaling == 1
    speeds: torch.Tensor = embedding.inv_freq
    return speeds


@pytest.mark.parametrize("name", KEYS)
def test_the_host_turns_by_these_speeds(name: str) -> None:
    key = KEYS[name]()
    torch.testing.assert_close(turned_by(key), torch.tensor(key.speeds), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", KEYS)
def test_a_key_is_made_again_of_its_name(name: str) -> None:
    key = KEYS[name]()
    assert named_key(key.name, ROTARY, len(key.speeds), theta=THETA, context=CONTEXT) == key


@pytest.mark.parametrize(
    "name", ["ladder", "ladder:0", "ladder:9", "twice:2", "twice", "planes:0,8,1", "planes:0", "planes:a"]
)
def test_no_key_is_made_of_another_name(name: str) -> None:
    with pytest.raises(ValueError, match=r"no rotary key|invalid literal"):
        named_key(name, ROTARY, 3, theta=THETA, context=CONTEXT)


@pytest.mark.parametrize("name", ["all planes", "the fastest", "twice", "all twice", "one twice"])
def test_portable_planes_can_be_the_source_s_own(name: str) -> None:
    key = KEYS[name]()
    own = [ROTARY.frequencies[plane] for plane, _ in key.begins]
    torch.testing.assert_close(torch.tensor(key.speeds), torch.tensor(own), rtol=1e-6, atol=0)


def test_free_planes_are_those_that_are_worth_the_most() -> None:
    assert free(4).begins == ((0, 0), (0, 1), (1, 0), (2, 0))
    assert free(5).begins == ((0, 0), (0, 1), (0, 2), (1, 0), (2, 0))


def test_free_planes_are_no_more_than_there_are() -> None:
    assert free(1000).width == 2 * GAINS.numel()


def test_portable_keys_are_distinct_and_of_one_width() -> None:
    keys = list(portable_keys(ROTARY, 6, context=CONTEXT))
    assert {key.width for key in keys} == {12}
    assert len({key.speeds for key in keys}) == len(keys) > 2


def test_no_more_planes_are_spanned_than_there_are() -> None:
    for key in portable_keys(ROTARY, 3 * PLANES, context=CONTEXT):
        assert min(key.speeds) > 1 / THETA
        assert {plane for plane, _ in key.begins} <= set(range(PLANES))
