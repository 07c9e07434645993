"""Files beside the weights that the original has not: what a loader may read is a finding, a note is none."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mha2gqa import VerifyOptions, verify
from mha2gqa.errors import CheckpointError
from mha2gqa.files.plain import load_json
from mha2gqa.verbs.verify.outcome import Verification
from tests.verbs.verify.subjects import converted, save_source

READ = (
    *("configuration_own.py", "tokenization_x.py", "custom_generate/generate.py", "custom_generate/deep/more.py"),
    *("chat_template.json", "additional_chat_templates/tool_use.jinja", "processor_config.json"),
    *("video_preprocessor_config.json", "special_tokens_map.json", "vocab.json", "spiece.model", "modules.json"),
    *("pytorch_model-00001-of-00002.bin", "consolidated.safetensors", "model.fp16.safetensors", "tf_model.h5"),
    *("flax_model.msgpack", "onnx/model.onnx", "original/consolidated.00.pth", "quantised/q4.gguf", "helper.py"),
    *("pytorch_model.bin.index.json", "adapter_model.safetensors", "1_Pooling/pooling.safetensors"),
)
NOT_READ = ("notes.txt", "LICENSE", "loss.png", "eval/results.csv", "USE_POLICY.md", "train.log", ".hidden.py")


@pytest.fixture(scope="module")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("beside")
    converted(save_source(directory / "source"), directory / "made", 2)
    return directory


@pytest.fixture
def made(_made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(_made / "made", tmp_path / "made"))


def check(directory: Path) -> Verification:
    return verify(VerifyOptions(converted=directory, levels=("file",)))


def test_every_stranger_that_a_loader_may_read_is_named(made: Path) -> None:
    for name in (*READ, *NOT_READ):
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text("[]" if name.endswith("modules.json") else "{}")
    findings = {finding.guilty: finding.problem for finding in check(made).findings}
    assert findings.keys() == set(READ)
    assert set(findings.values()) == {"is not beside the original, and loaders may read it"}


def test_a_result_of_a_version_that_wrote_rotary_settings_once_is_sound(made: Path) -> None:
    config, record = (json.loads((made / name).read_text()) for name in ("config.json", "mha2gqa.json"))
    added = {change["path"][-1] for change in record["config_changes"]} - {"num_key_value_heads"}
    assert "rope_theta" in added
    record["config_changes"] = [one for one in record["config_changes"] if one["path"][-1] not in added]
    (made / "mha2gqa.json").write_text(json.dumps(record))
    (made / "config.json").write_text(json.dumps({key: one for key, one in config.items() if key not in added}))
    assert check(made).findings == ()
    del config["num_key_value_heads"]
    (made / "config.json").write_text(json.dumps(config))
    assert check(made).findings


def test_a_shard_that_no_index_names_is_found(made: Path) -> None:
    save_file({"x": torch.zeros(2)}, made / "model-00003-of-00003.safetensors")
    assert [finding.guilty for finding in check(made).findings] == ["model-00003-of-00003.safetensors"]


@pytest.mark.parametrize("place", ["at the top", "inside"])
def test_a_key_of_the_config_that_stands_twice_is_found(made: Path, place: str) -> None:
    text = (made / "config.json").read_text()
    key = "vocab_size" if place == "at the top" else "rope_type"
    start = text.index(f'"{key}"')
    (made / "config.json").write_text(f'{text[:start]}"{key}": 5, {text[start:]}')
    (finding,) = check(made).findings
    assert finding.guilty == "config.json"
    assert f"the key '{key}' twice" in finding.problem


def test_keys_that_stand_twice_elsewhere_are_found_or_refused(made: Path) -> None:
    generation = made / "generation_config.json"
    generation.write_text(generation.read_text().replace("{", '{"max_length": 1, "max_length": 2,', 1))
    assert [finding.guilty for finding in check(made).findings] == ["generation_config.json"]
    record = made / "mha2gqa.json"
    record.write_text(record.read_text().replace('"command"', '"command": "expand", "command"', 1))
    with pytest.raises(CheckpointError, match="the key 'command' twice"):
        check(made)


def test_json_is_read_only_where_each_key_stands_once(tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    path.write_text('{"weight_map": {"a": "one", "b": "two", "a": "three"}}')
    with pytest.raises(CheckpointError, match="holds the key 'a' twice, and readers differ"):
        load_json(path, tmp_path)
    path.write_text(json.dumps({"a": {"b": 1}, "c": {"b": 1}}))
    assert load_json(path, tmp_path) == {"a": {"b": 1}, "c": {"b": 1}}
