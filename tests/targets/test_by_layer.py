"""Heads by layer: the result is each layer as its own number of heads alone would make it, put together.

The oracle is a Llama of transformers whose attention modules are those of uniform conversions, taken layer by layer.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, LlamaForCausalLM, PreTrainedModel, StaticCache

from mha2gqa import ConvertOptions, ExpandOptions, VerifyOptions, convert, expand, verify
from mha2gqa.errors import CalibrationError, CheckpointError, FamilyError, GroupsError, OptionError
from mha2gqa.model.architecture import Architecture
from mha2gqa.model.load import load_model
from mha2gqa.model.original import Original
from mha2gqa.targets.by_layer import heads_of
from mha2gqa.targets.window import parse_layers, windows
from mha2gqa.verbs.convert import scale
from mha2gqa.verbs.convert.budget import best_plans
from mha2gqa.verbs.convert.choosing import longest_within
from mha2gqa.verbs.sweep.measuring import restore
from tests.hosts.test_windows import IDS, T, W, apart, banded, load, source_model, stepwise
from tests.verbs.verify.subjects import save_text, save_tokenizer

GROUPS = (1, 4, 2, 2)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    model = source_model("llama", vocab_size=128, num_key_value_heads=4, max_position_embeddings=64, rms_norm_eps=1e-3)
    model.save_pretrained(tmp_path / "source")
    return tmp_path / "source"


def by_hand(source: Path, tmp_path: Path) -> LlamaForCausalLM:
    """Put a model together of uniform conversions."""
    model = LlamaForCausalLM.from_pretrained(source)
    for number, groups in enumerate(GROUPS):
        output = tmp_path / f"uniform-{groups}"
        if not output.exists():
            convert(ConvertOptions(model=str(source), groups=groups, output=output))
        model.model.layers[number].self_attn = load_model(output).model.layers[number].self_attn
    return model.eval()


@torch.no_grad()
def test_each_layer_is_what_its_own_number_makes_of_it(source: Path, tmp_path: Path) -> None:
    """Logits to the last bit, strict load, caches of G heads each, either cache, generation, saved and loaded again."""
    outcome = convert(ConvertOptions(model=str(source), groups=GROUPS, output=tmp_path / "result"))
    assert (outcome.model_type, outcome.rehosted_from, outcome.added) == (
        "nemotron-nas",
        "llama",
        ["modeling_nemotron_nas.py"],
    )
    assert outcome.cache_after / outcome.cache_before == sum(GROUPS) / 16
    model, wanted = load_model(tmp_path / "result"), by_hand(source, tmp_path)(input_ids=IDS, use_cache=False).logits
    assert type(model).__name__ == "DeciLMForCausalLM"
    assert apart(model(input_ids=IDS, use_cache=False).logits, wanted) == 0
    for store in (DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=IDS.shape[1])):
        assert apart(stepwise(model, store, [9, *[1] * (IDS.shape[1] - 9)]), wanted) < 1e-5
        assert [layer.keys.shape[1] for layer in store.layers] == [*GROUPS]
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    plain = model.generate(IDS, use_cache=False, **settings)
    for way in ({}, {"cache_implementation": "static"}):
        assert torch.equal(model.generate(IDS, **way, **settings), plain)
    model.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert apart(again(input_ids=IDS, use_cache=False).logits, wanted) == 0
    report = verify(VerifyOptions(converted=tmp_path / "result", levels=("file", "load")))
    assert not report.findings and report.file and not report.file.checksummed


@torch.no_grad()
def test_heads_by_layer_and_a_window_at_once(source: Path, tmp_path: Path) -> None:
    """The banded mask of hooks over layers put together by hand: to the last bit, by steps, saved and loaded again."""
    options = {"groups": GROUPS, "window": W, "window_layers": "0-2"}
    outcome = convert(ConvertOptions(model=str(source), output=tmp_path / "result", **options))
    assert (outcome.model_type, list(outcome.targets)) == ("nemotron-nas", ["window", "heads_by_layer"])
    plain = by_hand(source, tmp_path)
    plain.set_attn_implementation("eager")
    for layer in plain.model.layers:
        layer.self_attn.config = plain.config  # those of other models say otherwise
    wanted = banded(plain, [W, W, W, None])
    model = load_model(tmp_path / "result")
    assert apart(model(input_ids=IDS, use_cache=False).logits, wanted) < 1e-5
    for store, kept in ((DynamicCache(config=model.config), W - 1), (StaticCache(model.config, max_cache_len=T), W)):
        assert apart(stepwise(model, store, [9, *[1] * (T - 9)]), wanted) < 1e-5
        assert [layer.keys.shape[1:3] for layer in store.layers] == [(1, kept), (4, kept), (2, kept), (2, T)]
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    once = model.generate(IDS, use_cache=False, **settings)
    for way in ({}, {"cache_implementation": "static"}, {"prefill_chunk_size": W}):
        assert torch.equal(model.generate(IDS, **way, **settings), once)
    model.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again", "eager")
    assert apart(again(input_ids=IDS, use_cache=False).logits, wanted) == 0
    report = verify(VerifyOptions(converted=tmp_path / "result", levels=("file", "load")))
    checks = {one.name: one for one in report.load.checks} if report.load else {}
    assert not report.findings and "logit 0.0e+00" in checks["window, outputs"].detail
    card = (tmp_path / "result" / "README.md").read_text()
    assert "by the code beside the weights, and vLLM, layer by layer; llama.cpp does not" in card


def test_heads_and_windows_are_chosen_under_one_budget(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses are made up: only layer 2 needs to see far, and every head counts a little."""
    save_tokenizer(source)
    save_text(tmp_path / "text.txt", 4000)

    def lost(model: PreTrainedModel, *_: object) -> float:
        heads = sum(float(one.self_attn.k_proj.weight[::16].unique(dim=0).shape[0]) for one in model.model.layers)
        return 1 - 0.01 * heads + sum(0.3 if number == 2 else 0.001 for number, one in enumerate(reach(model)) if one)

    monkeypatch.setattr(scale, "mean_loss", lost)
    options = {"method": "aligned", "data": (str(tmp_path / "text.txt"),), "context": 32, "tokens": 1024}
    outcome = convert(ConvertOptions(model=str(source), cache=0.25, window=8, output=tmp_path / "result", **options))
    groups, layers = outcome.options["groups"], outcome.options["window-layers"]
    assert (groups, layers) == ("4,4,2,4", "0-1,3")  # 12 heads of 8 tokens and 2 of 64, of 16 heads of 64: 22 %
    ((_, (before, after)),) = outcome.cache_at.items()
    assert after / before == (12 * 8 + 2 * 64) / (16 * 64)
    assert f"{groups}, window on {layers}" in {trial["way"] for trial in outcome.trials}
    with pytest.raises(GroupsError, match="less than one KV head and the last 8 of 64 tokens a layer"):
        convert(ConvertOptions(model=str(source), cache=0.03, window=8, output=tmp_path / "none", **options))


def test_engines_read_blocks_as_objects(source: Path, tmp_path: Path) -> None:
    convert(ConvertOptions(model=str(source), groups=GROUPS, output=tmp_path / "result"))
    config, model = json.loads((tmp_path / "result" / "config.json").read_text()), load_model(tmp_path / "result")
    assert [block.attention.n_heads_in_group for block in model.config.block_configs] == [4, 1, 2, 2]
    assert {block["ffn"]["ffn_mult"] for block in config["block_configs"]} == {3 * 96 / (2 * 64)}
    assert (
        "vLLM and llama.cpp round the width of the MLP, 96, up to a multiple of 256"
        in (tmp_path / "result" / "README.md").read_text()
    )  # 96 is no multiple of 256


def test_auto_keeps_to_the_budget_and_to_the_least_measured_loss(source: Path, tmp_path: Path) -> None:
    save_tokenizer(source)
    save_text(tmp_path / "text.txt", 4000)
    options = {"method": "aligned", "data": (str(tmp_path / "text.txt"),), "context": 32, "tokens": 2048}
    outcome = convert(
        ConvertOptions(model=str(source), groups="auto", cache=0.5, output=tmp_path / "result", **options)
    )
    tried = {trial["way"]: trial["loss"] for trial in outcome.trials}
    chosen = (
        str(outcome.options["groups"]).replace("2", "2,2,2,2")
        if outcome.model_type == "llama"
        else outcome.options["groups"]
    )
    assert "2,2,2,2" in tried and chosen in tried
    assert tried[chosen] == min(tried.values())
    assert outcome.cache_after / outcome.cache_before <= 0.5
    assert all(sum(map(int, plan.split(","))) <= 8 for plan in tried)
    assert outcome.way == "aligned"


@pytest.mark.parametrize(("limit", "layers"), [(0.15, "0"), (0.4, "0-2"), (5.0, None)])
def test_auto_gives_the_window_to_as_many_layers_as_the_limit_allows(
    limit: float, layers: str | None, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses are made up, a tenth of a nat for each layer with a window: a random model may win by one."""
    save_tokenizer(source)
    save_text(tmp_path / "text.txt", 4000)
    monkeypatch.setattr(scale, "mean_loss", lambda model, *_: 1 + 0.1 * sum(map(bool, reach(model))))
    options = {"data": (str(tmp_path / "text.txt"),), "context": 32, "tokens": 1024, "window": 8}
    outcome = convert(
        ConvertOptions(
            model=str(source), window_layers="auto", max_ppl_increase=limit, output=tmp_path / "out", **options
        )
    )
    assert outcome.options.get("window-layers") == layers
    assert sum(map(bool, reach(load_model(tmp_path / "out")))) == (4 if layers is None else len(parse_layers(layers)))
    with pytest.raises(CalibrationError, match=r"layer 0 alone raises the perplexity by 10.52%"):
        convert(ConvertOptions(model=str(source), window_layers="auto", output=tmp_path / "none", **options))


@pytest.mark.parametrize(
    "asked", [{"groups": "auto"}, {"groups": "auto", "window": 8}, {"groups": 2, "window": 8, "window_layers": "auto"}]
)
def test_heads_may_be_averaged_where_text_chooses(asked: dict[str, Any], source: Path, tmp_path: Path) -> None:
    """What is left to do then reads no text, so that all of it can be made again."""
    save_tokenizer(source)
    save_text(tmp_path / "text.txt", 4000)
    text = {"data": (str(tmp_path / "text.txt"),), "context": 32, "tokens": 1024, "max_ppl_increase": 100.0}
    outcome = convert(ConvertOptions(model=str(source), output=tmp_path / "out", **asked, **text))
    assert outcome.trials and outcome.text and "data" not in outcome.options
    report = verify(VerifyOptions(converted=tmp_path / "out", levels=("file", "load")))
    assert report.findings == () and not any("checksums" in reason for reason in report.reasons)


def test_text_that_chooses_has_to_be_named(source: Path, tmp_path: Path) -> None:
    layers = {"window": 8, "window_layers": "auto"}
    for asked in ({"groups": "auto"}, {"groups": "auto", "refine": "refit"}, layers, {"groups": 2, **layers}):
        with pytest.raises(CalibrationError, match="auto needs calibration text, and none was given"):
            convert(ConvertOptions(model=str(source), output=tmp_path / "out", **asked))


def reach(model: PreTrainedModel) -> list[int | None]:
    return windows(Architecture(json.loads(model.config.to_json_string(use_diff=False))))


def test_the_knapsack_is_exact() -> None:
    """Every plan by brute force: the same best ones, in the same order."""
    generator = torch.Generator().manual_seed(0)
    losses = [
        {groups: float(torch.rand((), generator=generator)) / groups for groups in (1, 2, 4)} | {8: 0.0}
        for _ in range(4)
    ]
    plans = [(a, b, c, d) for a in losses[0] for b in losses[1] for c in losses[2] for d in losses[3]]
    within = [plan for plan in plans if sum(plan) <= 14]
    wanted = sorted(within, key=lambda plan: sum(losses[number][groups] for number, groups in enumerate(plan)))[:4]
    assert best_plans(losses, int, 14, 4) == wanted


def test_the_longest_within_a_limit_is_measured_and_not_believed() -> None:
    single = [0.1, 0.2, 0.3, 0.4]
    assert max(n for n, loss in longest_within(lambda n: 0.1 * n, single, 0.35).items() if loss <= 0.35) == 3
    measured = longest_within(lambda n: 0.3 * n, single, 0.65)
    assert measured == {3: pytest.approx(0.9), 2: pytest.approx(0.6)}
    assert longest_within(lambda n: 1.0, single, 0.5).keys() == {2, 1}


def test_what_cannot_be_is_refused(source: Path, tmp_path: Path) -> None:
    for groups, says in (((1, 2), "2 numbers, and the model 4 layers"), ((1, 3, 2, 2), "Layer 1 has 4 KV heads")):
        with pytest.raises(GroupsError, match=says):
            convert(ConvertOptions(model=str(source), groups=groups, output=tmp_path / "out"))
    source_model("qwen2").save_pretrained(tmp_path / "qwen2")
    with pytest.raises(FamilyError, match="own number of KV heads"):
        convert(ConvertOptions(model=str(tmp_path / "qwen2"), groups=GROUPS, output=tmp_path / "out"))
    for asked in (
        {"groups": 2, "cache": 0.5},
        {"groups": "auto", "method": "auto"},
        {"groups": "auto", "window": 8, "window_layers": "0"},
    ):
        with pytest.raises(OptionError, match="auto"):
            ConvertOptions(**{"groups": "auto", **asked})
    with pytest.raises(GroupsError, match="less than one KV head"):
        convert(ConvertOptions(model=str(source), groups="auto", cache=0.2, output=tmp_path / "out"))


def test_blocks_that_are_no_plain_llama_are_refused(source: Path, tmp_path: Path) -> None:
    """Real Nemotron-NAS checkpoints leave out layers; the class that ships does not, and says so."""
    output = convert(ConvertOptions(model=str(source), groups=GROUPS, output=tmp_path / "result")).output
    config = json.loads((output / "config.json").read_text())
    config["block_configs"][1]["attention"]["no_op"] = True
    (output / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="block 1 leaves out"):
        convert(ConvertOptions(model=str(output), groups=1, output=tmp_path / "out"))


@pytest.fixture
def uneven(source: Path, tmp_path: Path) -> Path:
    convert(ConvertOptions(model=str(source), groups=GROUPS, output=tmp_path / "uneven"))
    return tmp_path / "uneven"


def measured_cache(directory: Path) -> float:
    """Bytes that a token adds to transformers' own cache, in the dtype of the file."""
    model, size = load_model(directory), IDS.shape[1]
    store = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=IDS, past_key_values=store)
    return sum(one.keys[:, :, :size].nbytes + one.values[:, :, :size].nbytes for one in store.layers) / IDS.numel()


@pytest.mark.parametrize("groups", [1, 2])
def test_layers_that_stay_as_they_are_count(groups: int, uneven: Path, tmp_path: Path) -> None:
    outcome = convert(ConvertOptions(model=str(uneven), groups=groups, output=tmp_path / "result"))
    assert (outcome.cache_before, outcome.cache_after) == (measured_cache(uneven), measured_cache(tmp_path / "result"))
    report = verify(VerifyOptions(converted=tmp_path / "result", levels=("file", "load")))
    assert not report.findings


def test_repeated_heads_count_in_all_layers(uneven: Path, tmp_path: Path) -> None:
    outcome = expand(ExpandOptions(model=str(uneven), output=tmp_path / "result"))
    assert outcome.cache_after == measured_cache(tmp_path / "result")


def test_auto_goes_on_from_heads_by_layer(uneven: Path, tmp_path: Path) -> None:
    save_tokenizer(uneven)
    save_text(tmp_path / "text.txt", 4000)
    options = {"method": "aligned", "data": (str(tmp_path / "text.txt"),), "context": 32, "tokens": 2048}
    outcome = convert(
        ConvertOptions(model=str(uneven), groups="auto", cache=0.7, output=tmp_path / "result", **options)
    )
    plans = [[int(number) for number in trial["way"].split(",")] for trial in outcome.trials]
    assert len(plans) > 1
    assert all(sum(plan) <= 0.7 * sum(GROUPS) for plan in plans)
    assert all(has % gets == 0 for plan in plans for has, gets in zip(GROUPS, plan, strict=True))
    assert outcome.cache_after / outcome.cache_before <= 0.7


def test_a_model_of_heads_by_layer_is_brought_back_to_its_shapes(source: Path, uneven: Path, tmp_path: Path) -> None:
    """What `sweep` exchanges layers in: a result in the shapes of its original."""
    convert(ConvertOptions(model=str(uneven), groups=1, output=tmp_path / "one"))
    restore(tmp_path / "one", Original.at(uneven).architecture, tmp_path / "back")
    one, back = load_model(tmp_path / "one"), load_model(tmp_path / "back")
    assert heads_of(Original.at(tmp_path / "back").architecture) == GROUPS
    with torch.no_grad():
        assert apart(back(input_ids=IDS).logits, one(input_ids=IDS).logits) < 1e-5


@pytest.mark.parametrize("number", [0, -2])
def test_a_layer_keeps_a_head_at_least(number: int, source: Path, tmp_path: Path) -> None:
    with pytest.raises(GroupsError, match=f"Layer 1 has 4 KV heads, and --groups {number} for it. Expected 1, 2, 4"):
        convert(ConvertOptions(model=str(source), groups=(1, number, 2, 2), output=tmp_path / "result"))


def test_layers_that_have_the_window_keep_it(source: Path, tmp_path: Path) -> None:
    """The same window on others besides, then on all: each time the function changes, and is said to."""
    save_tokenizer(source)
    text = save_text(tmp_path / "text.txt", 4000)
    last, facts = source, []
    for name, layers in (("first", "0"), ("second", "2"), ("all", None)):
        options = {"window": W, "window_layers": layers, "output": tmp_path / name}
        outcome = convert(ConvertOptions(model=str(last), **options))
        facts.append(outcome.change.numbers().get("windowed_layers_after"))
        last = tmp_path / name
        checked = {"data": (str(text),), "tokens": 512, "context": 48, "max_ppl_increase": 10.0}
        report = verify(VerifyOptions(converted=last, **checked))
        assert {one.guilty for one in report.findings} <= {"KL divergence", "top-1 agreement"}, "of a random model"
        assert report.verdict != "identical"
    assert [[bool(one) for one in reach(load_model(tmp_path / name))] for name in ("first", "second", "all")] == [
        [True, False, False, False],
        [True, False, True, False],
        [True] * 4,
    ]
    assert facts == [1, 2, 4]
    same = convert(ConvertOptions(model=str(last), window=W, output=tmp_path / "same"))
    assert not same.change.is_any
    assert verify(VerifyOptions(converted=tmp_path / "same", levels=("file",))).verdict == "identical"
