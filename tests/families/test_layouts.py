"""Where heads lie in a tensor, where their number lies in a config, and under which names the tensors lie in a file.

Layouts and groupings are held against small examples written out; configs against transformers, which must size its
keys by what was rewritten; names against the same conversion of the file that transformers writes itself.
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from mha2gqa.errors import CheckpointError, FamilyError
from mha2gqa.families.blueprint import ConfigJson, blueprint
from mha2gqa.families.counts import FORMER_KEYS, Count, find_counts, rewrite
from mha2gqa.families.counts import Path as KeyPath
from mha2gqa.families.layouts import Geometry, HeadRows, Layout, fused, interleaved, separate
from mha2gqa.heads.grouping import contiguous, divisors, repeated, sharing
from mha2gqa.verbs.convert.options import ConvertOptions
from mha2gqa.verbs.convert.run import convert
from tests.families.cases import Case
from tests.families.oracle import Tensors, load_strict, read_config, read_tensors
from tests.families.tiny import model_class_name, save_tiny, tiny_config

KV = "num_key_value_heads"

# ---------------------------------------------------------------------------------------------- rows of a tensor


def spelled(runs: list[HeadRows]) -> str:
    """Rows as text, one letter and number a run: `q0q1k0v0`."""
    return "".join(f"{run.part}{run.head}" for run in runs)


@pytest.mark.parametrize(
    ("layout", "geometry", "rows"),
    [
        (separate, Geometry(4, 2), "kv0kv1"),
        (separate, Geometry(4, 1), "kv0"),
        (fused, Geometry(4, 4), "q0q1q2q3k0k1k2k3v0v1v2v3"),
        (fused, Geometry(4, 2), "q0q1q2q3k0k1v0v1"),
        (fused, Geometry(4, 1), "q0q1q2q3k0v0"),
        (interleaved, Geometry(2, 2), "q0k0v0q1k1v1"),
        (interleaved, Geometry(4, 2), "q0q1k0v0q2q3k1v1"),
    ],
)
def test_rows_belong_to_heads_in_file_order(layout: Layout, geometry: Geometry, rows: str) -> None:
    width = 16
    count = geometry.kv_heads if layout is separate else geometry.query_heads + 2 * geometry.kv_heads
    runs = layout(count * width, geometry)
    assert spelled(runs) == rows
    assert {run.count for run in runs} == {width}


def test_a_known_width_says_how_many_heads_a_layer_has() -> None:
    assert spelled(separate(64, Geometry(4, 2, head_width=16))) == "kv0kv1kv2kv3"


@pytest.mark.parametrize("layout", [separate, fused, interleaved])
def test_rows_that_are_no_whole_heads_are_an_error(layout: Layout) -> None:
    with pytest.raises(ValueError, match="65 rows cannot be divided"):
        layout(65, Geometry(4, 2))


def test_groups_are_neighbours_and_copies_stay_behind_one_another() -> None:
    assert contiguous(6, 2) == sharing(6, 2) == ((0, 1, 2), (3, 4, 5))
    assert repeated(2, 6) == sharing(2, 6) == ((0,), (0,), (0,), (1,), (1,), (1,))
    assert sharing(3, 3) == ((0,), (1,), (2,))
    assert divisors(12) == [1, 2, 3, 4, 6, 12]


@pytest.mark.parametrize(("heads", "groups"), [(8, 2), (6, 3), (5, 1), (4, 4)])
def test_repeating_undoes_grouping(heads: int, groups: int) -> None:
    homes = [group for (group,) in repeated(groups, heads)]
    assert contiguous(heads, groups) == tuple(
        tuple(head for head, home in enumerate(homes) if home == group) for group in range(groups)
    )


# ---------------------------------------------------------------------------------------------- numbers in a config


def config_of(model_type: str, **overrides: Any) -> ConfigJson:
    """The config.json of a tiny model, without its weights."""
    content = tiny_config(model_type, **overrides).to_dict() | {"architectures": [model_class_name(model_type)]}
    return json.loads(json.dumps(content, default=str))


def flat_qwen2_vl() -> ConfigJson:
    """As Qwen published it: the text model's keys at the top, no `text_config`."""
    config = config_of("qwen2_vl", text_config={KV: 2})
    text = config.pop("text_config")
    return text | config


def both_levels() -> ConfigJson:
    """As some exporters write it: a stale copy of the number at the top, which no one reads."""
    return config_of("llava", text_config={KV: 2}) | {KV: 64}


def silent(config: ConfigJson, *path: str) -> ConfigJson:
    """`config` without the key at `path`."""
    holder: Any = config
    for key in path[:-1]:
        holder = holder[key]
    del holder[path[-1]]
    return config


def aliased() -> ConfigJson:
    """As StepFun publishes it: the number under the name that its attribute_map translates."""
    config = config_of("step3p7", text_config={KV: 2})
    config["text_config"]["num_attention_groups"] = config["text_config"].pop(KV)
    return config


def two_kinds_of_layers() -> ConfigJson:
    return config_of("gemma4_text", num_global_key_value_heads=2, global_head_dim=32, attention_k_eq_v=True)


PER_LAYER = tuple(("per_layer_config", layer, KV) for layer in ("1", "3"))
PLACES: dict[str, tuple[Callable[[], ConfigJson], dict[tuple[KeyPath, ...], int]]] = {
    "top": (lambda: config_of("llama", **{KV: 2}), {((KV,),): 2}),
    "top, missing": (lambda: silent(config_of("llama"), KV), {((KV,),): 4}),
    "nested": (lambda: config_of("llava", text_config={KV: 2}), {(("text_config", KV),): 2}),
    "nested, missing": (lambda: silent(config_of("llava"), "text_config", KV), {(("text_config", KV),): 4}),
    "nested, stale copy at the top": (both_levels, {(("text_config", KV),): 2}),
    "flat, of a class that nests": (flat_qwen2_vl, {((KV,),): 2}),
    "alias": (aliased, {(("text_config", "num_attention_groups"),): 2}),
    "attn_config": (lambda: config_of("dbrx"), {(("attn_config", "kv_n_heads"),): 4}),
    "switch, off": (lambda: config_of("falcon"), {(("multi_query",),): 4}),
    "switch, on": (lambda: config_of("gpt_bigcode", multi_query=True), {(("multi_query",),): 1}),
    "single layers": (two_kinds_of_layers, {((KV,),): 4, PER_LAYER: 2}),
    "two kinds of attention": (lambda: config_of("inkling_text"), {((KV,),): 4, (("swa_num_key_value_heads",),): 4}),
    "decoder": (lambda: config_of("t5gemma"), {(("decoder", KV),): 4}),
}


def rewritten(config: ConfigJson, heads: int) -> tuple[list[Count], ConfigJson]:
    counts = find_counts(config, blueprint(config))
    return counts, rewrite(config, [(count, heads) for count in counts])


def leaves(content: Any, path: KeyPath = ()) -> dict[KeyPath, Any]:
    """Every value of a config by its path, in the order of the file."""
    if not isinstance(content, dict):
        return {path: content}
    return {inner: leaf for key, value in content.items() for inner, leaf in leaves(value, (*path, key)).items()}


@pytest.mark.parametrize("place", PLACES)
def test_a_number_is_found_and_rewritten_where_it_lives(place: str) -> None:
    make, expected = PLACES[place]
    config = make()
    untouched = copy.deepcopy(config)
    counts, after = rewritten(config, 1)
    assert {count.paths: count.heads for count in counts} == expected
    assert config == untouched, "rewrite returns a copy"
    written = {path: leaves(after)[path] for paths in expected for path in paths}
    assert all(value is (path[-1] == "multi_query" or 1) for path, value in written.items())
    again = {path for path in leaves(after) if {*FORMER_KEYS, "num_kv_heads"} & {*path}} - written.keys()
    others = {path: leaf for path, leaf in leaves(after).items() if path not in again}
    kept = {path: leaf for path, leaf in leaves(config).items() if path not in again}
    assert others == kept | written, "nothing else changes"
    assert list(after)[: len(config)] == list(config), "keys keep their order"


@pytest.mark.parametrize("place", PLACES)
def test_transformers_sizes_its_keys_by_what_was_rewritten(place: str) -> None:
    config = PLACES[place][0]()
    after = rewritten(config, 1)[1]
    before_shapes, after_shapes = blueprint(config).module_shapes, blueprint(after).module_shapes
    assert {count.heads for count in find_counts(after, blueprint(after))} == {1}
    changed = {name: shape for name, shape in after_shapes.items() if shape != before_shapes[name]}
    assert bool(changed) == (place != "switch, on")
    assert all(shape[0] in (16, 32) for name, shape in changed.items() if name.endswith("k_proj.weight"))


@pytest.mark.parametrize("value", [0, -4, 2.5, "4", True, [4]])
def test_a_number_that_is_none_is_refused(value: Any, tmp_path: Path) -> None:
    save_tiny("llama", tmp_path / "source")
    config = read_config(tmp_path / "source") | {KV: value}
    (tmp_path / "source/config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"num_key_value_heads|rejects this config"):
        convert(ConvertOptions(model=str(tmp_path / "source"), groups=1, output=tmp_path / "output"))
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("model_type", ["llmaa", "mistrall", "qwen9"])
def test_an_unknown_model_type_gets_a_suggestion(model_type: str) -> None:
    with pytest.raises(FamilyError, match=rf"{model_type}.*Did you mean"):
        blueprint(config_of("llama") | {"model_type": model_type})


# ---------------------------------------------------------------------------------------------- names in a file


def rename(directory: Path, spell: Callable[[str], str], **config: Any) -> None:
    """Give the tensors of a checkpoint other names, and its config other values."""
    tensors = {spell(name): tensor for name, tensor in load_file(directory / "model.safetensors").items()}
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    (directory / "config.json").write_text(json.dumps(read_config(directory) | config))


def to_one_head(source: Path, name: str = "output") -> Tensors:
    output = source.with_name(name)
    convert(ConvertOptions(model=str(source), groups=1, output=output))
    return read_tensors(output)


def module_names(name: str) -> str:
    """LLaVA's names in the module tree of transformers 5, which releases from 4.52 on wrote to files."""
    name = name.removeprefix("language_model.") if name.startswith("language_model.lm_head") else name
    name = name.replace("language_model.model.", "model.language_model.")
    return f"model.{name}" if name.startswith(("vision_tower", "multi_modal_projector")) else name


@pytest.mark.parametrize(
    ("model_type", "spell"),
    [
        ("llama", lambda name: name.removeprefix("model.")),
        ("olmo2", lambda name: name.removeprefix("model.")),
        ("llava", module_names),
    ],
)
def test_other_names_convert_to_the_same_tensors(model_type: str, spell: Callable[[str], str], tmp_path: Path) -> None:
    source = tmp_path / "source"
    save_tiny(model_type, source)
    expected = {spell(name): tensor for name, tensor in to_one_head(source, "expected").items()}
    rename(source, spell)
    found = to_one_head(source)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_base_model_loads_as_one(tmp_path: Path) -> None:
    source = tmp_path / "source"
    model = save_tiny("qwen2", source)
    model.model.save_pretrained(source)
    assert not any(name.startswith("model.") for name in read_tensors(source))
    assert read_config(source)["architectures"] == ["Qwen2Model"]
    to_one_head(source)
    _, info = AutoModel.from_pretrained(tmp_path / "output", output_loading_info=True)
    assert not any(info.values())


def test_a_flat_legacy_config_converts_with_its_weights(tmp_path: Path) -> None:
    source = tmp_path / "source"
    save_tiny("qwen2_vl", source, text_config={KV: 2})
    (source / "config.json").write_text(json.dumps(flat_qwen2_vl()))
    to_one_head(source)
    config = read_config(tmp_path / "output")
    assert (config[KV], "text_config" in config) == (1, False)
    model = load_strict(tmp_path / "output", Case(model_type="qwen2_vl"))
    assert model.config.get_text_config().num_key_value_heads == 1


@pytest.mark.parametrize("module", ["model.layers.2.self_attn", "mtp.layers.0.self_attn"])
def test_layers_for_multi_token_prediction_are_pooled_too(module: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    save_tiny("glm4_moe", source, attention_bias=True)
    tensors = load_file(source / "model.safetensors")
    first = "model.layers.0.self_attn"
    extra = {name.replace(first, module): tensor.clone() for name, tensor in tensors.items() if name.startswith(first)}
    head = module.rpartition(".")[0]
    extra |= {f"{head}.eh_proj.weight": torch.randn(64, 128), f"{head}.shared_head.head.weight": torch.randn(64, 64)}
    save_file(tensors | extra, source / "model.safetensors", {"format": "pt"})

    result = to_one_head(source)
    assert result.keys() == tensors.keys() | extra.keys()
    for name, tensor in extra.items():
        model_name = name.replace(module, first)
        assert torch.equal(result[name], result.get(model_name, tensor))
    assert result[f"{module}.k_proj.weight"].shape == (16, 64)
    assert result[f"{module}.v_proj.bias"].shape == (16,)
    groups = json.loads((tmp_path / "output/mha2gqa.json").read_text())["groups"]
    assert groups[module] == [[0, 1, 2, 3]]
