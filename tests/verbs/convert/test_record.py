"""What lies beside the weights of a result: the record, the model card, the companions; and what a run reports.

Checksums are computed again from the files. The source must be untouched, byte for byte.
"""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from mha2gqa.cli import app
from mha2gqa.files.finish import write_record
from mha2gqa.files.source import Source
from mha2gqa.record.card import card_of
from mha2gqa.record.conversion import Conversion, Outcome
from mha2gqa.record.record import read_record, record_of
from mha2gqa.targets.kv_heads import heads_change
from mha2gqa.verbs.convert.kinds import kinds_of
from mha2gqa.verbs.convert.options import ConvertOptions
from mha2gqa.verbs.convert.run import convert
from mha2gqa.verbs.expand.options import ExpandOptions
from mha2gqa.verbs.expand.run import expand
from tests.families.oracle import read_tensors
from tests.families.tiny import save_tiny

CARD = """---
license: other
license_name: tiny-community
license_link: LICENSE
language:
- en
- zh
pipeline_tag: text-generation
datasets:
- org/corpus
tags:
- tiny
base_model: org/older
model-index:
- name: tiny
  results: []
---

# A tiny model
"""
TAKEN = {
    "tokenizer.json": "{}",
    "tokenizer_config.json": "{}",
    "tokenizer.model": "spm",
    "vocab.txt": "a\nb\n",
    "special_tokens_map.json": "{}",
    "merges.txt": "a b",
    "chat_template.jinja": "{{ messages }}",
    "modeling_tiny.py": "pass\n",
    "preprocessor_config.json": "{}",
    "LICENSE": "free",
    "NOTICE.txt": "mind",
    "additional_chat_templates/tools.jinja": "{{ tools }}",
}
LEFT = (
    *("pytorch_model.bin", "model.onnx", "model.gguf", "optimizer.pt", "flax_model.msgpack", "tf_model.h5"),
    *("original/consolidated.00.pth", "pytorch_model.bin.index.json", ".gitattributes", ".cache/huggingface/lock"),
)
OUTCOME = Outcome(
    command="convert",
    options={"groups": 2, "method": "mean"},
    targets=("kv_heads",),
    model_type="llama",
    change=heads_change(4, 2, "loss"),
    config_changes=[],
    groups={},
    dropped=(),
    source="org/tiny",
    output=Path("tiny-gqa2"),
    written=False,
    cache_before=1024,
    cache_after=512,
    bytes_read=0,
    bytes_written=0,
    files={},
    companions=[],
    left_behind=[],
    taken_off=[],
    added=[],
    tensors=[],
    recomputed=(),
)


def write_card(directory: Path, source: Path, *, hub_id: str | None, revision: str | None) -> None:
    named = Source(directory=source, name="tiny", hub_id=hub_id, revision=revision)
    (directory / "README.md").write_text(card_of(OUTCOME, named))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A tiny checkpoint with everything that authors put beside one."""
    directory = tmp_path / "tiny"
    save_tiny("llama", directory, dtype=torch.bfloat16)
    for name, content in {"README.md": CARD, **TAKEN, **dict.fromkeys(LEFT, "old")}.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(content)
    return directory


def files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def record(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "mha2gqa.json").read_text())


def run(*arguments: object) -> dict[str, Any]:
    result = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0
    return json.loads(result.stdout)


# ---------------------------------------------------------------------------------------------- record


def test_the_record_says_what_was_done_to_what(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    convert(ConvertOptions(model=str(source), groups=2, method="random", seed=7, output=output))
    content = record(output)
    assert content["format"] == 1
    checksums = content["source"].pop("xxh3_128")
    assert content["source"] == {"path": str(source.resolve()), "hub_id": None, "revision": None}
    assert checksums == {
        name: xxhash.xxh3_128_hexdigest(tensor.view(torch.uint8).numpy().tobytes())
        for name, tensor in read_tensors(source).items()
    }
    assert content["command"] == "convert"
    assert content["options"] == {"groups": 2, "method": "random", "grouping": "contiguous", "seed": 7}
    assert content["model_type"] == "llama"
    assert (content["source_heads"], content["target_heads"]) == (4, 2)
    assert content["config_changes"] == [
        {"path": ["num_key_value_heads"], "before": 4, "after": 2},
        {"path": ["rope_theta"], "before": None, "after": 10000.0},
    ]
    assert content["groups"] == {f"model.layers.{layer}.self_attn": [[0, 1], [2, 3]] for layer in (0, 1)}
    assert content["dropped"] == []
    packages = ("mha2gqa", "torch", "transformers", "safetensors", "huggingface_hub")
    assert {name: content["versions"][name] for name in packages} == {name: version(name) for name in packages}


TRIALS = [
    {"refine": None, "loss": 2.5, "increase": 0.4},
    {"refine": "joint", "loss": 2.1, "increase": 0.01},
    {"refine": "distil", "loss": 2.2, "increase": 0.03},
]


@pytest.mark.parametrize(
    ("options", "trials", "divergence", "way"),
    [
        ({"groups": 2, "method": "aligned", "refine": "refit"}, [], None, "aligned, refit"),
        ({"groups": 2, "method": "aligned"}, [], (0.5, 0.25), "aligned"),
        ({"groups": 2, "method": "auto"}, TRIALS, (0.5, 0.25), "auto: aligned, joint"),
        ({"groups": 2, "method": "auto"}, TRIALS[:1], None, "auto: aligned"),
        ({"heads": 4}, [], None, None),
    ],
)
def test_a_record_comes_back_as_it_was_written(
    tmp_path: Path,
    options: dict[str, Any],
    trials: list[dict[str, Any]],
    divergence: tuple[float, float] | None,
    way: str | None,
) -> None:
    layer = {"module": "a", "groups": [[1, 0]], "keys": "free", "values": "fixed", "errors": {"merged": 0.5}}
    made = Conversion(
        command="convert" if "groups" in options else "expand",
        options=options,
        targets=("kv_heads",) if "groups" in options else ("expand",),
        model_type="llama",
        change=heads_change(4, 2, "loss" if "groups" in options else "rounding"),
        config_changes=[{"path": ("num_key_value_heads",), "before": 4, "after": 2}],
        groups={"a": ((1, 0), (2, 3))},
        dropped=("b",),
        text="text from c.txt",
        layers=[layer],
        trials=trials,
        uptrain=[
            {"train": "all", "objective": "lm", "length": {"steps": 5, "tokens": 9}, "losses": None, "recipe": {}}
        ],
        divergence=divergence,
        rehosted_from="gpt2",
    )
    assert made.way == way
    source = Source(directory=tmp_path, name="tiny", hub_id="org/tiny", revision="main")
    write_record(tmp_path, record_of(made, source, (), {}, {}))
    assert read_record(tmp_path).conversion == made
    old = Conversion(**vars(made) | {"command": "convert" if "groups" in options else "expand"})
    write_record(
        tmp_path, {name: value for name, value in record_of(old, source, (), {}, {}).items() if name != "targets"}
    )
    assert read_record(tmp_path).conversion == old, "records of before there were targets"


def test_the_record_holds_the_checksum_of_every_tensor(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    convert(ConvertOptions(model=str(source), groups=1, output=output, max_shard_size="20kB"))
    assert len(list(output.glob("model-*.safetensors"))) > 1
    expected = {
        name: {
            "changed": "k_proj" in name or "v_proj" in name,
            "xxh3_128": xxhash.xxh3_128_hexdigest(tensor.reshape(-1).view(torch.uint8).numpy().tobytes()),
        }
        for name, tensor in read_tensors(output).items()
    }
    assert record(output)["tensors"] == expected


def test_the_record_names_the_tensors_that_are_gone(tmp_path: Path) -> None:
    save_tiny("stablelm", tmp_path / "source", qk_layernorm=True)
    convert(ConvertOptions(model=str(tmp_path / "source"), groups=2, output=tmp_path / "output"))
    gone = read_tensors(tmp_path / "source").keys() - read_tensors(tmp_path / "output").keys()
    assert record(tmp_path / "output")["dropped"] == sorted(gone)
    assert {name.partition("k_layernorm.")[2] for name in gone} == {"norms.2.weight", "norms.3.weight"}


def test_an_expansion_records_which_head_each_copy_repeats(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path / "source", num_key_value_heads=2)
    expand(ExpandOptions(model=str(tmp_path / "source"), output=tmp_path / "output"))
    content = record(tmp_path / "output")
    assert (content["command"], content["options"]) == ("expand", {"heads": 4})
    assert content["groups"]["model.layers.0.self_attn"] == [[0], [0], [1], [1]]
    card = ModelCard.load(tmp_path / "output/README.md")
    assert "changes no output" in card.text


# ---------------------------------------------------------------------------------------------- model card


def test_the_card_is_one_that_the_hub_reads(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "tiny-mqa"
    convert(ConvertOptions(model=str(source), groups=1, output=output))
    card = ModelCard.load(output / "README.md")
    data = card.data.to_dict()
    assert set(data["tags"]) >= {"mha2gqa", "mqa"}
    assert data["library_name"] == "transformers"
    assert "base_model" not in data
    inherited = ("license", "license_name", "license_link", "language", "pipeline_tag", "datasets")
    original = ModelCard.load(source / "README.md").data.to_dict()
    assert {key: data[key] for key in inherited} == {key: original[key] for key in inherited}
    assert "model-index" not in data
    assert "# tiny-mqa\n" in card.text
    # 2 · 4 heads · 16 · 2 B · 2 layers
    assert "| KV cache, bytes per token | 512 | 128 |" in card.text
    assert "mha2gqa convert tiny --groups 1 --method mean" in card.text
    assert str(tmp_path) not in card.content, "a path of this machine is nobody's business"


def test_the_card_of_a_hub_model_links_to_it(source: Path, tmp_path: Path) -> None:
    write_card(tmp_path, source, hub_id="org/tiny", revision="0123abc")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model == "org/tiny"
    assert card.data.tags[:2] == ["mha2gqa", "gqa"]
    assert "(https://huggingface.co/org/tiny)" in card.text
    assert "mha2gqa convert org/tiny@0123abc --groups 2" in card.text
    assert "2 KV heads instead of 4" in card.text


@pytest.mark.parametrize(
    "original", [None, "", "# No data\n", "---\nlicense: [\n---\n", "---\n- a list\n---\n", "---\nlicense: 7\n---\n"]
)
def test_a_source_card_that_is_missing_or_broken_does_not_matter(original: str | None, tmp_path: Path) -> None:
    source, output = tmp_path / "source", tmp_path / "output"
    source.mkdir()
    output.mkdir()
    if original is not None:
        (source / "README.md").write_text(original)
    write_card(output, source, hub_id=None, revision=None)
    assert "mha2gqa" in ModelCard.load(output / "README.md").data.tags


def test_a_source_card_in_latin_1_does_not_matter(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "README.md").write_bytes("---\nlicense: mit\n---\nModèle".encode("latin-1"))
    write_card(tmp_path, source, hub_id=None, revision=None)
    assert "mha2gqa" in ModelCard.load(tmp_path / "README.md").data.tags


# ---------------------------------------------------------------------------------------------- companions


def test_companions_are_copied_and_old_weights_are_not(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    convert(ConvertOptions(model=str(source), groups=2, output=output))
    before, after = files(source), files(output)
    ours = {"config.json", "model.safetensors", "mha2gqa.json", "README.md"}
    assert after.keys() == ours | TAKEN.keys() | {"generation_config.json"}
    for name in after.keys() - ours:
        assert after[name] == before[name]


def test_the_source_is_left_as_it_was(source: Path, tmp_path: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, path.is_dir() or path.read_bytes()) for path in source.rglob("*")}
    convert(ConvertOptions(model=str(source), groups=2, output=tmp_path / "output"))
    after = {path: (path.stat().st_mtime_ns, path.is_dir() or path.read_bytes()) for path in source.rglob("*")}
    assert after == before


def test_the_record_of_the_source_is_not_taken_for_the_results(source: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    convert(ConvertOptions(model=str(source), groups=2, output=first))
    convert(ConvertOptions(model=str(first), groups=1, output=second))
    assert record(second)["source"]["path"] == str(first)
    assert record(second)["source_heads"] == 2
    tags = ModelCard.load(second / "README.md").data.tags
    assert "mqa" in tags
    assert "gqa" not in tags


# ---------------------------------------------------------------------------------------------- reports


def test_a_dry_run_lists_every_kind_of_tensor_and_every_file_and_writes_nothing(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    arguments = ["convert", source, "--groups", 1, "-o", output, "--dry-run"]
    printed = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False).stdout
    rows = {line.split()[0]: line.split(maxsplit=1)[1] for line in printed.splitlines() if "BF16" in line}
    assert rows.keys() == {name.replace(".0.", ".{0-1}.").replace(".1.", ".{0-1}.") for name in read_tensors(source)}
    for name, tensor in read_tensors(source).items():
        layers = ".0." in name or ".1." in name
        row = rows[name.replace(".0.", ".{0-1}.").replace(".1.", ".{0-1}.")]
        assert str(list(tensor.shape)) in row
        assert row.split()[0] == ("2" if layers else "1")
        assert ("changed" in row) == ("k_proj" in name or "v_proj" in name)
    copied = " ".join(printed.partition("\ncopy ")[2].partition("config.json num_key")[0].split())
    assert set(TAKEN) <= set(copied.split(", "))
    assert "write model.safetensors: " in printed
    assert "config.json num_key_value_heads: 4 -> 1" in printed
    assert "--json lists every tensor" in printed
    assert list(tmp_path.iterdir()) == [source]


def row(name: str, before: tuple[int, ...] = (4, 2), after: tuple[int, ...] | None = (2, 2)) -> dict[str, Any]:
    return {"name": name, "action": "changed", "dtype": "F32", "before": before, "after": after}


@pytest.mark.parametrize(
    ("tensors", "kinds"),
    [
        pytest.param([row(f"a.{n}.k") for n in range(12)], [("a.{0-11}.k", 12)], id="all layers"),
        pytest.param([row(f"a.{n}.k") for n in (7, 0, 1, 2, 3, 10)], [("a.{0-3,7,10}.k", 6)], id="some layers"),
        pytest.param(
            [row(f"a.{n}.k", after=(2 if n % 3 else 1, 2)) for n in range(7)],
            [("a.{0,3,6}.k", 3), ("a.{1-2,4-5}.k", 4)],
            id="heads by layer",
        ),
        pytest.param(
            [row(f"a.{n}.e.{m}.w") for n in range(3) for m in range(8)], [("a.{0-2}.e.{0-7}.w", 24)], id="experts"
        ),
        pytest.param(
            [row(f"a.{n}.e.{m}.w") for n in range(3) for m in range(8 - 4 * (n == 1))],
            [("a.{0,2}.e.{0-7}.w", 16), ("a.1.e.{0-3}.w", 4)],
            id="fewer experts in a layer",
        ),
        pytest.param([row(f"b.{n}.layer.0.k") for n in range(6)], [("b.{0-5}.layer.0.k", 6)], id="a number in all"),
        pytest.param(
            [row("emb"), row("a.0.k"), row("a.1.k", (4, 2), None), row("a.{}.k"), row("a.007.k")],
            [("emb", 1), ("a.0.k", 1), ("a.1.k", 1), ("a.{}.k", 1), ("a.007.k", 1)],
            id="nothing alike",
        ),
    ],
)
def test_tensors_that_differ_in_their_layer_alone_are_one_line(
    tensors: list[dict[str, Any]], kinds: list[tuple[str, int]]
) -> None:
    assert [(one.name, one.number) for one in kinds_of(tensors)] == kinds


def test_a_dry_run_foretells_the_run(source: Path, tmp_path: Path) -> None:
    arguments = ("convert", source, "--groups", 2, "-o", tmp_path / "output", "--json")
    planned, done = run(*arguments, "--dry-run"), run(*arguments)
    assert (planned.pop("written"), done.pop("written")) == (False, True)
    assert planned.pop("seconds") == 0 < done.pop("seconds")
    assert planned == done
    assert done["bytes_written"] == sum(tensor.nbytes for tensor in read_tensors(tmp_path / "output").values())
    assert done["cache_after"] * 2 == done["cache_before"] == 512
    assert {tensor["name"] for tensor in done["tensors"]} == read_tensors(source).keys()


def test_the_json_of_an_expansion_is_parseable(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path / "source", num_key_value_heads=1)
    report = run("expand", tmp_path / "source", "-o", tmp_path / "output", "--heads", 2, "--json")
    assert (report["command"], report["heads_before"], report["heads_after"]) == ("expand", 1, 2)
    assert report["method"] is None


def test_the_card_of_a_converted_reference_gives_a_command_that_runs(tmp_path: Path) -> None:
    convert(ConvertOptions(groups=4, output=tmp_path / "converted"))
    text = ModelCard.load(tmp_path / "converted" / "README.md").text
    assert "mha2gqa convert --groups 4 --method mean" in text
