"""Faults planted one at a time in a converted checkpoint: each is found, at its level, under the name of the guilty."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from mha2gqa import ExpandOptions, VerifyOptions, expand, verify
from mha2gqa.record.pair import find_pair
from mha2gqa.verbs.verify.levels import Check, Finding
from mha2gqa.verbs.verify.outcome import Verification
from mha2gqa.verbs.verify.remedy import remedy_for
from mha2gqa.verbs.verify.words import _problem
from tests.verbs.verify.subjects import (
    converted,
    edit_json,
    flip_bit,
    rearrange_rows,
    save_source,
    save_text,
    save_tokenizer,
)

LAYER = "model.layers.1.self_attn"


@pytest.fixture(scope="module")
def _clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source in three files, its conversion to two heads, a copy by G = K, and a text."""
    directory = tmp_path_factory.mktemp("faults")
    source = save_source(directory / "source", shards=3)
    converted(source, directory / "two", 2)
    converted(source, directory / "same", 4)
    save_text(directory / "text.txt")
    return directory


@pytest.fixture
def clean(_clean: Path, tmp_path: Path) -> Path:
    """The same, with the source where the records say that it is, and the rest for the test to damage."""
    for name in ("two", "same"):
        shutil.copytree(_clean / name, tmp_path / name)
    shutil.copy(_clean / "text.txt", tmp_path)
    return tmp_path


def check(directory: Path, *levels: str, name: str = "two") -> Verification:
    return verify(
        VerifyOptions(
            converted=directory / name,
            data=(str(directory / "text.txt"),),
            context=32,
            levels=levels or ("file",),
        )
    )


def only(report: Verification) -> Finding:
    assert report.verdict == "different"
    assert len(report.findings) == 1, report.findings
    return report.findings[0]


def shard_of(directory: Path, name: str) -> Path:
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    return directory / index["weight_map"][name]


def test_without_a_fault_nothing_is_found(clean: Path) -> None:
    report = check(clean)
    assert report.verdict == "within limits"
    assert report.file is not None
    assert (report.file.compared, report.file.recomputed, report.file.checksummed) == (17, 4, 0)
    assert report.file.files == 3
    assert check(clean, name="same").verdict == "identical"


@pytest.mark.parametrize("byte", [0, 777, -1])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.embed_tokens.weight", "differs from the original's, first in row"),
        ("model.norm.weight", "differs from the original's, first at byte"),
        (f"{LAYER}.k_proj.weight", "differs from the result of 'mean' of the original's heads, first in row"),
        (f"{LAYER}.v_proj.weight", "differs from the result of 'mean'"),
    ],
)
def test_a_flipped_bit_is_found_in_its_tensor(clean: Path, name: str, words: str, byte: int) -> None:
    flip_bit(clean / "two", name, byte)
    finding = only(check(clean))
    assert (finding.level, finding.guilty) == ("file", name)
    assert words in finding.problem


def test_a_row_is_counted_from_the_first_that_differs(clean: Path) -> None:
    # 2 heads of 16 rows, 64 columns of 4 bytes: byte 5000 is in row 19.
    flip_bit(clean / "two", f"{LAYER}.k_proj.weight", 5000)
    assert "in row 19 of 32" in only(check(clean)).problem


@pytest.mark.parametrize(
    ("name", "order"),
    [(f"{LAYER}.v_proj.weight", [1, 0]), (f"{LAYER}.q_proj.weight", [1, 0, 2, 3])],
    ids=["groups swapped", "query rows permuted"],
)
def test_heads_in_another_order_are_found(clean: Path, name: str, order: list[int]) -> None:
    rearrange_rows(clean / "two", name, order)
    assert only(check(clean)).guilty == name


def test_the_outputs_show_the_layer_whose_query_rows_are_permuted(clean: Path) -> None:
    rearrange_rows(clean / "same", f"{LAYER}.q_proj.weight", [1, 0, 2, 3])
    report = check(clean, "outputs", name="same")
    assert {finding.level for finding in report.findings} == {"outputs"}
    assert {"KL divergence", "logits"} <= {finding.guilty for finding in report.findings}
    assert report.outputs is not None
    errors = {layer.module: layer.error for layer in report.outputs.layers}
    assert errors["model.layers.0.self_attn"] == 0
    assert errors[LAYER] > 0.01


def test_a_changed_config_key_is_found(clean: Path) -> None:
    edit_json(clean / "two/config.json", "rms_norm_eps", value=0.5)
    finding = only(check(clean))
    assert finding.guilty == "config.json: rms_norm_eps"
    assert "is 0.5, not the original's" in finding.problem


def test_a_wrong_number_of_heads_is_found_in_the_file_and_on_loading(clean: Path) -> None:
    edit_json(clean / "two/config.json", "num_key_value_heads", value=1)
    assert "is 1, not what this conversion makes of it, 2" in only(check(clean)).problem
    report = check(clean, "load")
    assert {finding.guilty for finding in report.findings} >= {f"{LAYER}.k_proj.weight", f"{LAYER}.v_proj.weight"}
    assert {finding.level for finding in report.findings} == {"load"}
    both = check(clean, "file", "load", "outputs")
    assert both.outputs is None
    assert "does not load" in both.reasons[-1]


def test_a_truncated_shard_is_found(clean: Path) -> None:
    shard = shard_of(clean / "two", f"{LAYER}.k_proj.weight")
    shard.write_bytes(shard.read_bytes()[:-5])
    report = check(clean, "file", "load", "outputs")
    finding = only(report)
    assert (finding.level, finding.guilty) == ("file", shard.name)
    assert report.load is report.outputs is None
    assert "files are damaged" in report.reasons[-1]


@pytest.mark.parametrize("damage", ["missing", "extra"])
def test_a_missing_or_additional_tensor_is_found(clean: Path, damage: str) -> None:
    name = "model.norm.weight"
    shard = shard_of(clean / "two", name)
    tensors = load_file(shard)
    tensor = tensors.pop(name) if damage == "missing" else tensors[name].clone()
    if damage == "extra":
        tensors["model.extra.weight"] = tensor
    save_file(tensors, shard, {"format": "pt"})
    index = clean / "two/model.safetensors.index.json"
    content = json.loads(index.read_text())
    if damage == "missing":
        del content["weight_map"][name]
    index.write_text(json.dumps(content))
    guilty = name if damage == "missing" else "model.extra.weight"
    assert only(check(clean)).guilty == guilty
    assert guilty in {finding.guilty for finding in check(clean, "load").findings}


@pytest.mark.parametrize(
    ("dtype", "tolerance", "advice"),
    [
        ("bfloat16", 0.05, "verify again with --dtype float32"),
        ("bfloat16", None, "do not use the checkpoint"),
        ("float32", 1e-4, "do not use the checkpoint"),
    ],
)
def test_what_16_bits_may_explain_is_told_from_a_fault(
    clean: Path, dtype: str, tolerance: float | None, advice: str
) -> None:
    report = check(clean, "load")
    assert report.load is not None
    failed = Check(name="prefill", passed=False, detail="is off", tolerance=tolerance)
    finding = Finding(level="load", guilty=failed.name, problem=failed.detail)
    load = replace(report.load, dtype=dtype, checks=(*report.load.checks, failed), findings=(finding,))
    found = replace(report, load=load)
    options = VerifyOptions(converted=clean / "two", levels=("load",))
    found = replace(found, remedy=remedy_for(found, find_pair(clean / "two", None), options))
    assert advice in _problem(found)


def test_another_tokenizer_is_found(clean: Path) -> None:
    save_tokenizer(clean / "two", first=4)
    assert only(check(clean)).guilty == "tokenizer.json"


def test_a_missing_or_additional_tokenizer_file_is_found(clean: Path) -> None:
    (clean / "two/tokenizer_config.json").unlink()
    (clean / "two/added_tokens.json").write_text('{"x": 5}')
    (clean / "two/notes.txt").write_text("files that no tokenizer reads may be there")
    findings = {finding.guilty: finding.problem for finding in check(clean).findings}
    assert findings.keys() == {"tokenizer_config.json", "added_tokens.json"}
    assert "is missing" in findings["tokenizer_config.json"]


def test_a_record_that_was_changed_is_found(clean: Path) -> None:
    record = clean / "two/mha2gqa.json"
    name = f"{LAYER}.k_proj.weight"
    edit_json(record, "tensors", name, "xxh3_128", value="0" * 32)
    finding = only(check(clean))
    assert finding.guilty == name
    assert "though its bytes are right" in finding.problem


def test_a_layer_method_without_text_is_made_again(clean: Path, _clean: Path) -> None:
    converted(_clean / "source", clean / "aligned", 2, method="aligned", data=("none",))
    report = check(clean, name="aligned")
    assert report.verdict == "within limits"
    assert report.file is not None
    assert (report.file.compared, report.file.recomputed, report.file.checksummed) == (13, 8, 0)
    flip_bit(clean / "aligned", f"{LAYER}.k_proj.weight")
    finding = only(check(clean, name="aligned"))
    assert finding.guilty == f"{LAYER}.k_proj.weight"
    assert "differs from the result of 'aligned'" in finding.problem


def test_a_layer_method_with_text_is_held_against_the_records_checksums(clean: Path, _clean: Path) -> None:
    text = (str(clean / "text.txt"),)
    converted(_clean / "source", clean / "aligned", 2, method="aligned", data=text, context=32)
    report = check(clean, name="aligned")
    assert report.verdict == "within limits"
    told = " ".join(report.reasons)
    assert "Only the record's checksums speak for 8 tensors: aligned cannot be made again" in told
    assert report.file is not None
    assert (report.file.compared, report.file.recomputed, report.file.checksummed) == (13, 0, 8)
    flip_bit(clean / "aligned", f"{LAYER}.k_proj.weight")
    finding = only(check(clean, name="aligned"))
    assert finding.guilty == f"{LAYER}.k_proj.weight"
    assert "not the recorded one" in finding.problem


@pytest.mark.parametrize("method", ["first", "random"])
def test_every_method_without_data_is_made_again(clean: Path, _clean: Path, method: str) -> None:
    converted(_clean / "source", clean / method, 1, method=method, seed=3)
    report = check(clean, name=method)
    assert not report.findings
    assert report.file is not None
    assert report.file.recomputed == 4
    flip_bit(clean / method, f"{LAYER}.v_proj.weight")
    assert only(check(clean, name=method)).guilty == f"{LAYER}.v_proj.weight"


def test_an_expansion_is_made_again_and_answers_as_before(clean: Path) -> None:
    expand(ExpandOptions(model=str(clean / "two"), output=clean / "wide"))
    report = check(clean, "file", "load", "outputs", name="wide")
    assert not report.findings
    assert report.verdict in ("identical", "within limits")
    assert report.outputs is not None
    assert report.outputs.kl.mean < 1e-6
    flip_bit(clean / "wide", f"{LAYER}.k_proj.weight")
    finding = only(check(clean, name="wide"))
    assert finding.guilty == f"{LAYER}.k_proj.weight"
    assert "the repetition" in finding.problem


@pytest.mark.parametrize("levels", [("load",), ("outputs",)])
def test_a_fault_in_the_files_does_not_hide_the_levels_above(clean: Path, levels: tuple[str, ...]) -> None:
    flip_bit(clean / "two", "model.norm.weight", 0)
    report = check(clean, "file", *levels)
    assert report.file is not None
    assert len(report.file.findings) == 1
    assert (report.load is not None, report.outputs is not None) == ("load" in levels, "outputs" in levels)


@pytest.mark.parametrize(
    ("damage", "words", "levels"),
    [
        (lambda index: index.pop("metadata"), "no `metadata`", {"file", "load"}),
        (lambda index: index.update(metadata=None), "no `metadata`", {"file", "load"}),
        (lambda index: index["metadata"].update(total_size=1), "says total_size 1, and its tensors have", {"file"}),
        (lambda index: index["weight_map"].pop("model.norm.weight"), "does not name model.norm.weight", {"file"}),
    ],
    ids=["no metadata", "null", "another size", "a tensor less"],
)
def test_a_damaged_index_is_found(clean: Path, damage: Callable[[Any], object], words: str, levels: set[str]) -> None:
    """Transformers loads the files that it names, whatever else it says, but not without `metadata`."""
    index = clean / "two/model.safetensors.index.json"
    content = json.loads(index.read_text())
    damage(content)
    index.write_text(json.dumps(content))
    finding = only(check(clean))
    assert (finding.guilty, words in finding.problem) == (index.name, True)
    assert {level for level in ("file", "load") if check(clean, level).findings} == levels
