"""Windows, host by host: each result is held against the source's own class under a banded mask.

The oracle runs the source with a mask that hooks force into its attention modules, so that none of transformers' own
code for windows is in it.

Legend: T tokens, W tokens of the window, L layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel, StaticCache

from mha2gqa import ConvertOptions, VerifyOptions, convert, verify
from mha2gqa.errors import FamilyError, GroupsError, OptionError

T, W, L, VOCABULARY = 23, 5, 4, 97
BASE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": L,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
FREE = {"head_dim": 32, "tie_word_embeddings": True, "rope_parameters": LLAMA3}
BIASES = {"attention_bias": True, "mlp_bias": True}
EXPERTS = {
    "moe_intermediate_size": 32,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "shared_expert_intermediate_size": 32,
}
IDS = torch.randint(3, VOCABULARY, (1, T), generator=torch.Generator().manual_seed(1))


@dataclass(frozen=True)
class Case:
    """A source, and the class of its result."""

    source: str
    host: str
    layers: tuple[int, ...] | None = None
    config: dict[str, Any] = field(default_factory=dict)
    eager: bool = False
    """The class has no other attention."""

    def __str__(self) -> str:
        return f"{self.source}-{self.host}-{len(self.layers or '') or 'all'}-{'-'.join(self.config)}"


SOME = (1, 2)
CASES = [
    Case("llama", "mistral", config={"rms_norm_eps": 1e-3}),
    Case("llama", "mistral", config=FREE),
    Case("llama", "mistral", config={"rope_parameters": YARN}),
    Case("llama", "cwm", SOME, {"rms_norm_eps": 1e-3}),
    Case("llama", "cwm", (0, 3), FREE | {"mlp_bias": True}),
    Case("llama", "ministral", SOME, {"eos_token_id": None, "rms_norm_eps": 1e-3}),
    Case("llama", "smollm3", None, BIASES),
    Case("llama", "smollm3", SOME, BIASES),
    Case("mistral", "mistral", None, {"sliding_window": None}),
    Case("mistral", "mistral", None, {"sliding_window": 16}),
    Case("mistral", "ministral", SOME, {"sliding_window": None, "rms_norm_eps": 1e-3}),
    Case("qwen2", "qwen2"),
    Case("qwen2", "qwen2", SOME),
    Case("qwen3", "qwen3", SOME, {"head_dim": 16}),
    Case("phi3", "phi3", None, {"sliding_window": None}),
    Case("phi3", "ministral", SOME, {"sliding_window": None}),
    Case("starcoder2", "starcoder2", None, {"sliding_window": None}),
    Case("smollm3", "smollm3", None, {"no_rope_layers": [1, 1, 1, 0]}),
    Case("smollm3", "smollm3", SOME, {"no_rope_layers": [1, 1, 0, 0]}),
    Case("olmo2", "olmo3", None, {"rms_norm_eps": 1e-3}),
    Case("olmo2", "olmo3", SOME, {"rope_parameters": YARN}),
    Case("gemma", "vaultgemma", None, {"head_dim": 16}, eager=True),
    Case("gemma", "vaultgemma", SOME, {"head_dim": 16, "rms_norm_eps": 1e-3}, eager=True),
    Case("cohere", "cohere2", None, {"layer_norm_eps": 1e-3}),
    Case("granite", "granite_swa", None, {"attention_multiplier": 0.25}, eager=True),
    Case("granite", "granite_swa", SOME, {"attention_multiplier": 0.25, "rms_norm_eps": 1e-3}, eager=True),
    Case("mixtral", "mixtral", None, {"num_local_experts": 4, "sliding_window": None}),
    Case("qwen2_moe", "qwen2_moe", SOME, EXPERTS),
    Case("qwen3_moe", "qwen3_moe", None, EXPERTS | {"head_dim": 16}),
]


def source_model(model_type: str, **config: Any) -> PreTrainedModel:
    """Build a random model, gains and biases too."""
    made = AutoConfig.for_model(model_type, **{**BASE, **config})
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(made, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(0.15 * noise if parameter.ndim >= 2 else parameter + 0.1 * noise)
    model.tie_weights()
    model.set_attn_implementation("eager")
    return model


@torch.no_grad()
def banded(model: PreTrainedModel, reach: Sequence[int | None]) -> torch.Tensor:
    """Return the logits of a model whose layers each see so many tokens."""
    steps_T, hooks = torch.arange(T), []
    modules = [one for name, one in model.named_modules() if name.endswith("self_attn")]
    assert len(modules) == L
    for module, window in zip(modules, reach, strict=True):
        distance_TT = steps_T[:, None] - steps_T[None]
        seen_TT = (distance_TT >= 0) & (distance_TT < (window or T))
        mask = torch.zeros(1, 1, T, T).masked_fill(~seen_TT, torch.finfo(torch.float32).min)
        hooks.append(
            module.register_forward_pre_hook(
                lambda _, args, kwargs, mask=mask: (args, kwargs | {"attention_mask": mask}), with_kwargs=True
            )
        )
    logits_BTV: torch.Tensor = model(input_ids=IDS, use_cache=False).logits
    for hook in hooks:
        hook.remove()
    return logits_BTV


@torch.no_grad()
def stepwise(model: PreTrainedModel, store: Any, sizes: Sequence[int]) -> torch.Tensor:
    """Return the logits of a model that reads with a cache, so many tokens at a time."""
    parts = IDS.split(list(sizes), dim=1)
    return torch.cat([model(input_ids=part, past_key_values=store, use_cache=True).logits for part in parts], dim=1)


def chunks(size: int) -> list[int]:
    return [min(size, T - start) for start in range(0, T, size)]


def apart(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first - second).abs().max() / second.abs().max())


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def make(number: int) -> tuple[PreTrainedModel, Path]:
        case, directory = CASES[number], tmp_path_factory.mktemp("window")
        model = source_model(case.source, **case.config)
        model.save_pretrained(directory / "source")
        layers = None if case.layers is None else ",".join(map(str, case.layers))
        options = ConvertOptions(
            model=str(directory / "source"), window=W, window_layers=layers, output=directory / "result"
        )
        outcome = convert(options)
        assert outcome.model_type == case.host
        assert outcome.rehosted_from == (None if case.host == case.source else case.source)
        return model, directory / "result"

    return make


def load(directory: Path, attention: str) -> PreTrainedModel:
    model, info = AutoModelForCausalLM.from_pretrained(
        directory, dtype="auto", output_loading_info=True, attn_implementation=attention
    )
    assert not any(info.values()), info
    return model.eval()


def sliding(case: Case) -> list[bool]:
    return [case.layers is None or number in case.layers for number in range(L)]


@pytest.mark.parametrize("number", range(len(CASES)), ids=[str(case) for case in CASES])
def test_a_window_is_the_source_under_a_banded_mask(number: int, results: Any, tmp_path: Path) -> None:
    """Eager attention to the last bit; the other by rounding; by steps and chunks, with either cache; saved again."""
    case, (source, directory) = CASES[number], results(number)
    wanted = banded(source, [W if one else None for one in sliding(case)])
    model = load(directory, "eager")
    with torch.no_grad():
        once = model(input_ids=IDS, use_cache=False).logits
    assert apart(once, wanted) == 0
    assert apart(wanted, banded(source, [None] * L)) > 1e-3
    if not case.eager:
        model = load(directory, "sdpa")
        with torch.no_grad():
            assert apart(model(input_ids=IDS, use_cache=False).logits, wanted) < 1e-5
    for sizes in ((1, 7), (7, W)):
        dynamic = DynamicCache(config=model.config)
        static = StaticCache(config=model.config, max_cache_len=T)
        assert apart(stepwise(model, dynamic, chunks(sizes[0])), wanted) < 1e-5
        assert apart(stepwise(model, static, chunks(sizes[1])), wanted) < 1e-5
        assert [layer.keys.shape[2] for layer in dynamic.layers] == [W - 1 if one else T for one in sliding(case)]
        assert [layer.keys.shape[2] for layer in static.layers] == [W if one else T for one in sliding(case)]
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    plain = model.generate(IDS[:, :12], use_cache=False, **settings)
    for way in ({}, {"cache_implementation": "static"}, {"prefill_chunk_size": W}):
        assert torch.equal(model.generate(IDS[:, :12], **way, **settings), plain)
    model.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again", "eager")
    with torch.no_grad():
        assert apart(again(input_ids=IDS, use_cache=False).logits, wanted) == 0


def test_heads_and_a_window_at_once(results: Any, tmp_path: Path) -> None:
    """The window stands on the tensors that fewer heads alone give, in the class of the window."""
    _, directory = results(1)
    outcomes = [
        convert(ConvertOptions(model=str(directory.parent / "source"), groups=1, output=tmp_path / name, **window))
        for name, window in {"heads": {}, "both": {"window": W, "window_layers": "0-2"}}.items()
    ]
    heads, both = (load(outcome.output, "eager") for outcome in outcomes)
    with torch.no_grad():
        assert apart(both(input_ids=IDS, use_cache=False).logits, banded(heads, [W, W, W, None])) == 0
    assert outcomes[1].options["window-layers"] == "0-2"
    assert outcomes[1].cache_after * 2 == outcomes[1].cache_before
    (tokens, (before, after)) = next(iter(outcomes[1].cache_at.items()))
    assert (tokens, after / before) == (256, (3 * W + 256) / 256 / 4 / 2)
    assert (tmp_path / "both" / "README.md").read_text().count("window") > 3


@pytest.mark.parametrize(("layers", "kept"), [(None, W), ("0-2", W)])
def test_speeds_of_kinds_of_layers_that_a_class_keeps_apart(layers: str | None, kept: int, tmp_path: Path) -> None:
    """Olmo3 has a buffer for each kind of layers that there are, and `verify` needs the other."""
    source_model("olmo2", num_key_value_heads=2).save_pretrained(tmp_path / "source")
    asked = {"groups": 1, "window": kept, "window_layers": layers, "output": tmp_path / "result"}
    convert(ConvertOptions(model=str(tmp_path / "source"), **asked))
    report = verify(VerifyOptions(converted=tmp_path / "result", levels=("load",)))
    assert report.load is not None and not report.findings
    assert "window, outputs" in {one.name for one in report.load.checks}


REFUSED = [
    ("llama", {}, {"window": 257}, GroupsError, "above the 256 tokens"),
    ("mistral", {"sliding_window": 8}, {"window": 9}, GroupsError, "above the 8 tokens"),
    ("llama", {}, {"window": W, "window_layers": "1,4"}, GroupsError, "layer 4"),
    ("starcoder2", {}, {"window": W, "window_layers": "1"}, FamilyError, "one mask"),
    ("cohere", {"use_qk_norm": True}, {"window": W}, FamilyError, "normalises"),
    ("olmoe", {"num_experts": 4, "num_experts_per_tok": 2}, {"window": W}, FamilyError, "No class of transformers"),
    (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
        {"window": W, "window_layers": "0-2"},
        FamilyError,
        "Layer 3 has a window of 8",
    ),
]


@pytest.mark.parametrize(("model_type", "config", "asked", "error", "says"), REFUSED, ids=[one[4] for one in REFUSED])
def test_what_cannot_be_is_refused(
    model_type: str, config: dict[str, Any], asked: dict[str, Any], error: type[Exception], says: str, tmp_path: Path
) -> None:
    source_model(model_type, **config).save_pretrained(tmp_path / "source")
    with pytest.raises(error, match=says):
        convert(ConvertOptions(model=str(tmp_path / "source"), output=tmp_path / "out", **asked))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({}, "--groups or --window"),
        ({"window": 1}, "below 2"),
        ({"groups": 2, "window_layers": "0"}, "goes with --window"),
        ({"window": 8, "window_layers": "3-1"}, "3-1"),
        ({"window": 8, "method": "aligned"}, "--method goes with --groups"),
    ],
)
def test_options_that_say_nothing_are_wrong_usage(asked: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        ConvertOptions(**asked)
