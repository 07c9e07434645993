"""Records that claim what is not so: what follows from the original is planned again from it, whatever they say."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from safetensors.torch import load_file, save_file

from mha2gqa import ConvertOptions, UptrainOptions, VerifyOptions, convert, uptrain, verify
from mha2gqa.errors import CheckpointError, PairError
from mha2gqa.files.reader import RECORD, read_checkpoint
from mha2gqa.record.pair import find_pair
from mha2gqa.record.record import read_record
from mha2gqa.verbs.verify.levels import Finding
from mha2gqa.verbs.verify.outcome import Verification
from tests.families.tiny import save_tiny
from tests.hosts.sources import SOURCES, build
from tests.verbs.verify.subjects import converted, edit_json, flip_bit, save_source, save_text

LAYER = "model.layers.0"
KEYS, GATE = f"{LAYER}.self_attn.k_proj.weight", f"{LAYER}.mlp.gate_proj.weight"
Record = dict[str, Any]
QUICK: Any = {
    "objective": "lm",
    "steps": 2,
    "context": 32,
    "held_out_tokens": 100,
    "trainer": {"use_cpu": True, "per_device_train_batch_size": 2, "learning_rate": 1e-2},
}
TRAINING = {"objective": "lm", "length": {"steps": 3}, "changed": 1}


@pytest.fixture(scope="module")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("forged")
    source = save_source(directory / "source", "qwen3")
    converted(source, directory / "first", 2, method="first")
    converted(source, directory / "aligned", 2, method="aligned", data=("none",))
    save_text(directory / "text.txt")
    return directory


@pytest.fixture
def made(_made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(_made, tmp_path / "made"))


def check(directory: Path, name: str = "first") -> Verification:
    return verify(VerifyOptions(converted=directory / name, against=str(directory / "source"), levels=("file",)))


def guilty(report: Verification) -> set[str]:
    return {finding.guilty for finding in report.findings}


def tamper(directory: Path, tensor: str, **more: Any) -> None:
    """Change a tensor, and make the record's checksum fit."""
    path = directory / "model.safetensors"
    tensors = load_file(path)
    tensors[tensor] = tensors[tensor] + 0.01
    save_file(tensors, path, {"format": "pt"})
    content = tensors[tensor].view(torch.uint8).numpy().data
    entry = {"xxh3_128": xxhash.xxh3_128_hexdigest(content)} | more
    record = json.loads((directory / RECORD).read_text())
    record["tensors"][tensor] |= entry
    (directory / RECORD).write_text(json.dumps(record))


def claim(directory: Path, change: Callable[[Record], object]) -> None:
    record = json.loads((directory / RECORD).read_text())
    change(record)
    (directory / RECORD).write_text(json.dumps(record))


CLAIMS: dict[str, Callable[[Record], object]] = {
    "nothing": lambda record: None,
    "another method": lambda record: record["options"].update(method="aligned"),
    "an unknown method": lambda record: record["options"].update(method="of later"),
    "auto": lambda record: record["options"].update(method="auto"),
    "text": lambda record: record["options"].update(data=["corpus.txt"], tokens=4096),
    "a refinement": lambda record: record["options"].update(refine="distil", data=["corpus.txt"]),
    "joint": lambda record: record["options"].update(refine="joint"),
    "sorted heads": lambda record: record["options"].update(method="mean", grouping="similar"),
}


@pytest.mark.parametrize("said", [*CLAIMS])
@pytest.mark.parametrize("name", ["first", "aligned"])
def test_no_claim_of_the_method_hides_a_changed_projection(made: Path, name: str, said: str) -> None:
    tamper(made / name, KEYS, changed=True)
    claim(made / name, CLAIMS[said])
    report = check(made, name)
    assert report.verdict == "different"
    assert KEYS in guilty(report)


@pytest.mark.parametrize("said", ["nothing", "a refinement", "attention trained"])
def test_no_claim_but_a_training_of_everything_hides_what_is_not_attention(made: Path, said: str) -> None:
    tamper(made / "aligned", GATE, changed=True)
    (made / "aligned/uptrain.yaml").write_text("steps: 3")
    trained = {"uptrain": [TRAINING | {"train": "attention"}]}
    claim(made / "aligned", CLAIMS.get(said, lambda record: record.update(trained)))
    assert GATE in guilty(check(made, "aligned"))


def test_a_claimed_training_has_to_be_plausible_and_is_named(made: Path) -> None:
    tamper(made / "first", KEYS)
    claim(made / "first", lambda record: record.update(uptrain=[TRAINING | {"train": "all", "changed": 11}]))
    assert guilty(check(made)) == {RECORD, "uptrain.yaml"}
    (made / "first/uptrain.yaml").write_text("steps: 3")
    assert "says that a training changed 11 tensors, and 1 were changed" in check(made).findings[0].problem
    claim(made / "first", lambda record: record.update(uptrain=[TRAINING | {"train": "all"}]))
    report = check(made)
    assert not report.findings
    assert "Only the record's checksums speak for 1 tensor: a training made them." in report.reasons


@pytest.mark.parametrize("key", ["rope_theta", "max_position_embeddings", "attention_bias"])
def test_a_change_of_the_config_is_none_because_the_record_lists_it(made: Path, key: str) -> None:
    for name in ("first", "aligned"):
        edit_json(made / name / "config.json", key, value=7)
        entry = {"path": [key], "before": None, "after": 7}
        claim(made / name, lambda record, entry=entry: record["config_changes"].append(entry))
        assert {f"config.json: {key}", RECORD} <= guilty(check(made, name))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("groups", {"model.layers.0.self_attn": [[0, 3], [1, 2]]}, "other groups of heads"),
        ("dropped", ["model.norm.weight"], "other tensors that were left out"),
        ("source_heads", 8, "another change of attention"),
    ],
)
def test_what_else_a_record_says_is_held_against_the_plan(made: Path, key: str, value: Any, words: str) -> None:
    claim(made / "first", lambda record: record.update({key: value}))
    (finding,) = check(made).findings
    assert finding.guilty == RECORD
    assert words in finding.problem


def test_a_target_that_the_original_cannot_have_is_a_finding(made: Path) -> None:
    claim(made / "first", lambda record: record.update(target_heads=3, options=record["options"] | {"groups": 3}))
    findings = check(made).findings
    assert findings[0] == Finding(level="file", guilty=RECORD, problem=findings[0].problem)
    assert "tells of what this original cannot become" in findings[0].problem


ODD: dict[str, Record] = {
    "a method that is a list": {"options": {"groups": 2, "method": ["first"]}},
    "a method that is a switch": {"options": {"groups": 2, "method": True}},
    "a refinement that is a number": {"options": {"groups": 2, "method": "first", "refine": float("nan")}},
    "a seed that is a word": {"options": {"groups": 2, "method": "first", "seed": "x"}},
    "an endless number": {"target_heads": float("inf")},
    "the same target again": {"targets": ["kv_heads", "kv_heads"]},
    "another command's target": {"targets": ["expand"]},
    "a layer without a head": {"targets": ["heads_by_layer"], "options": {"groups": "0,2", "method": "first"}},
    "a training of nothing": {"uptrain": [{}]},
    "a training without end": {"uptrain": [TRAINING | {"train": "all", "length": {"steps": "x"}}]},
}


@pytest.mark.parametrize("said", ODD)
def test_values_of_other_types_are_no_record(made: Path, said: str) -> None:
    claim(made / "first", lambda record: record.update(ODD[said]))
    with pytest.raises(CheckpointError, match="is not a record of this version"):
        check(made)


def test_another_class_than_the_results_is_a_finding(made: Path) -> None:
    claim(made / "first", lambda record: record.update(model_type="mistral"))
    (finding,) = check(made).findings
    assert "says that the result is of class 'mistral', and this conversion makes 'qwen3'" in finding.problem


OTHERS: dict[str, Any] = {
    "window": {"window": 6},
    "latent": {"latent": 32, "rope_width": 8, "data": ("self",), "tokens": 128, "context": 16},
    "by layer": {"groups": (2, 1)},
}


@pytest.fixture(scope="module", params=OTHERS)
def other(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Convert a Llama to what is no number of heads."""
    directory = tmp_path_factory.mktemp("other")
    source = save_source(directory / "source")
    convert(ConvertOptions(model=str(source), output=directory / "made", **OTHERS[request.param]))
    return directory


def test_tensors_alone_make_no_other_attention_identical(other: Path) -> None:
    assert check(other, "made").verdict == "within limits"


def test_no_method_merges_heads_where_there_are_none(other: Path) -> None:
    kept = (other / "made" / RECORD).read_bytes()
    claim(other / "made", lambda record: record["options"].update(method="first"))
    findings = check(other, "made").findings
    (other / "made" / RECORD).write_bytes(kept)
    assert findings


@pytest.mark.parametrize("more", [b"\xff", b"\r\n"])
def test_code_that_ships_is_compared_byte_by_byte(other: Path, more: bytes) -> None:
    for code in (other / "made").glob("modeling_*.py"):
        kept = code.read_bytes()
        code.write_bytes(kept.replace(b"\n", more))
        assert code.name in guilty(check(other, "made"))
        code.write_bytes(kept)


@pytest.mark.parametrize("path", [["architectures", "x"], ["vocab_size", "x", "y"]])
def test_a_change_inside_what_holds_no_keys_is_a_finding(made: Path, path: list[str]) -> None:
    entry = {"path": path, "before": None, "after": 7}
    claim(made / "first", lambda record: record["config_changes"].append(entry))
    assert RECORD in guilty(check(made))


def test_the_record_sums_every_tensor_of_the_source(made: Path, tmp_path: Path) -> None:
    wanted = {
        info.name: xxhash.xxh3_128_hexdigest(info.file.read_bytes()[info.offset : info.offset + info.size])
        for info in read_checkpoint(made / "source").tensors
        if isinstance(info.file, Path)
    }
    assert read_record(made / "first").made_of == read_record(made / "aligned").made_of == wanted
    build(SOURCES["gpt_neox parallel"]).save_pretrained(tmp_path / "neox")
    converted(tmp_path / "neox", tmp_path / "neox-2", 2)
    names = {info.name for info in read_checkpoint(tmp_path / "neox").tensors}
    assert read_record(tmp_path / "neox-2").made_of.keys() == names
    assert any("query_key_value" in name for name in names)


@pytest.mark.parametrize("tensor", [KEYS, f"{LAYER}.self_attn.q_proj.weight", GATE])
def test_another_original_is_told_by_any_tensor(made: Path, tensor: str) -> None:
    flip_bit(made / "source", tensor, 99)
    with pytest.raises(PairError, match=rf"was not made from .* its tensor '{tensor}'"):
        check(made, "aligned")


def test_records_without_those_sums_are_still_read(made: Path) -> None:
    for name in ("first", "aligned"):
        claim(made / name, lambda record: record["source"].pop("xxh3_128"))
        assert check(made, name).verdict == "within limits"
    flip_bit(made / "first", GATE)
    assert guilty(check(made)) == {GATE}


def test_everything_may_be_trained_and_trained_again(tmp_path: Path) -> None:
    save_text(tmp_path / "text.txt", 4000)
    made = converted(save_source(tmp_path / "source", "olmo2"), tmp_path / "made", 1)
    again = made
    for name, train in (("all", "all"), ("more", "kv")):
        text = (str(tmp_path / "text.txt"),)
        uptrain(UptrainOptions(converted=again, output=tmp_path / name, data=text, train=train, **QUICK))
        again = tmp_path / name
        report = check(tmp_path, name)
        assert not report.findings
        assert report.file is not None
        assert report.file.checksummed > report.file.compared
        assert any("a training made them" in reason for reason in report.reasons)
        assert find_pair(again, None).original.directory == tmp_path / "source"
    other = save_tiny("olmo2", tmp_path / "other")
    for parameter in other.parameters():
        parameter.data.mul_(1.01)  # as another training of the same model
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(PairError, match="was not made from"):
        find_pair(again, str(tmp_path / "other"))
