"""`inspect`, `convert` and `verify` of families whose class ships with the result."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from mha2gqa import ConvertOptions, InspectOptions, VerifyOptions, convert, inspect, verify
from mha2gqa.cli import app
from mha2gqa.model.load import load_model

from .subjects import SUBJECTS, averaged
from .test_convert import largest_difference


def source(model_type: str, directory: Path) -> Path:
    torch.set_num_threads(1)
    subject = next(one for one in SUBJECTS if one.model_type == model_type)
    subject.native().save_pretrained(directory / model_type)
    return directory / model_type


def test_inspect_shows_what_cross_attention_caches(tmp_path: Path) -> None:
    report = inspect(InspectOptions(model=str(source("bart", tmp_path))))
    assert (report.layers, report.cross_layers) == (2, 2)
    assert [(row.groups, row.bytes_per_token, row.cross_bytes_per_token) for row in report.rows] == [
        (groups, 2 * 2 * groups * 16 * 4, 2 * 2 * groups * 16 * 4) for groups in (4, 2, 1)
    ]
    convert(ConvertOptions(model=str(tmp_path / "bart"), groups={"decoder": 2, "cross": 1}, output=tmp_path / "out"))
    now = inspect(InspectOptions(model=str(tmp_path / "out"))).rows[0]
    assert (now.groups, now.bytes_per_token, now.cross_bytes_per_token) == (2, 2 * 2 * 2 * 16 * 4, 2 * 2 * 1 * 16 * 4)


def test_inspect_of_an_encoder_shows_no_cache(tmp_path: Path) -> None:
    report = inspect(InspectOptions(model=str(source("bert", tmp_path))))
    assert (report.layers, report.rows, report.convertible) == (0, [], True)


def test_inspect_of_a_decoder_of_the_same_class_shows_its_cache(tmp_path: Path) -> None:
    path = source("bert", tmp_path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"is_decoder": True, "architectures": ["BertLMHeadModel"]}))
    assert [row.bytes_per_token for row in inspect(InspectOptions(model=str(path))).rows] == [1024, 512, 256]


@pytest.mark.parametrize(
    ("arguments", "groups"),
    [
        (["-g", "decoder=2,cross=1"], {"decoder": 2, "cross": 1}),
        (["-g", "2", "--attention", "self"], {"decoder": 2}),
        (["-g", "1", "--attention", "cross,encoder"], {"cross": 1, "encoder": 1}),
        (["-g", "2"], {"decoder": 2, "cross": 2}),
    ],
)
def test_kinds_of_attention_on_the_command_line(arguments: list[str], groups: dict[str, int], tmp_path: Path) -> None:
    path, output = source("t5", tmp_path), tmp_path / "out"
    result = CliRunner().invoke(app, ["convert", str(path), *arguments, "-o", str(output)])
    assert result.exit_code == 0, result.output
    subject = next(one for one in SUBJECTS if one.model_type == "t5")
    assert largest_difference(subject, load_model(output), averaged(subject.native(), groups)) < 1e-5


@pytest.mark.parametrize("groups", ["decoder=2,cross=1", "{decoder: 2, cross: 1}"])
def test_kinds_of_attention_in_a_file(groups: str, tmp_path: Path) -> None:
    path, recipe = source("t5", tmp_path), tmp_path / "recipe.yaml"
    recipe.write_text(f"model: {path}\ngroups: {groups}\noutput: {tmp_path / 'out'}\n")
    result = CliRunner().invoke(app, ["convert", "--config", str(recipe)])
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert [written[f"{part}_key_value_heads"] for part in ("decoder", "cross", "encoder")] == [2, 1, 4]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-g", "decoder=2,foo=1"], "'foo' is no kind of attention"),
        (["-g", "decoder=x"], "'x' is not a valid integer"),
        (["-g", "2", "--attention", "all"], "'all' is no kind of attention"),
        (["-g", "decoder=2", "--attention", "cross"], "--attention does not go with"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(arguments: list[str], said: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["convert", str(source("t5", tmp_path)), *arguments, "-o", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert said in " ".join(result.output.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("model_type", "groups"), [("bart", {"decoder": 2, "cross": 1}), ("bert", 2), ("mpt", 1)])
def test_verify_makes_the_files_again_and_runs_them(
    model_type: str, groups: int | dict[str, int], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    convert(ConvertOptions(model=str(source(model_type, tmp_path)), groups=groups, output=output))
    report = verify(VerifyOptions(converted=output, levels=("file", "load")))
    assert report.file is not None
    assert report.load is not None
    assert not report.file.findings + report.load.findings
    assert report.file.recomputed == {"bart": 16, "bert": 8, "mpt": 2}[model_type]
    checks = {check.name: check.detail for check in report.load.checks}
    if model_type == "bart":
        assert checks["cache bytes a token"].startswith("1,024 -> 512 measured")
        assert checks["cross-attention cache bytes a token read"].startswith("1,024 -> 256 measured")


def test_verify_finds_a_changed_number(tmp_path: Path) -> None:
    output = tmp_path / "out"
    convert(ConvertOptions(model=str(source("bart", tmp_path)), groups={"cross": 2}, output=output))
    name = "model.decoder.layers.1.encoder_attn.k_proj.weight"
    tensors = load_file(output / "model.safetensors")
    tensors[name][3, 5] += 1
    save_file(tensors, output / "model.safetensors", metadata={"format": "pt"})
    report = verify(VerifyOptions(converted=output, levels=("file",)))
    assert report.file is not None
    assert [finding.guilty for finding in report.file.findings] == [name]


@pytest.mark.parametrize(
    ("model_type", "says", "modules"),
    [
        (
            "gpt2",
            "llama.cpp, MLX and vLLM refuse it; CTranslate2, which runs the original, does not run it",
            {"c_attn"},
        ),
        ("t5", "other engines were not tried with it; CTranslate2", {"q", "k", "v"}),
        ("bert", "other engines were not tried with it.", {"query", "key", "value"}),
    ],
)
def test_plan_and_card_say_which_engines_are_lost(
    model_type: str, says: str, modules: set[str], tmp_path: Path
) -> None:
    path, output = source(model_type, tmp_path), tmp_path / "out"
    (planned,) = convert(ConvertOptions(model=str(path), groups=2, output=output, dry_run=True)).notes
    (note,) = convert(ConvertOptions(model=str(path), groups=2, output=output)).notes
    assert note == planned
    assert says in note
    assert note in (output / "README.md").read_text()
    assert {*json.loads(note.split("target_modules=")[1].rstrip(".").replace("'", '"'))} == modules
    assert modules <= {name.rpartition(".")[2] for name, _ in load_model(output).named_modules()}
