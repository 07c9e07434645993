"""What a checkpoint's files lack is named, in the original, too; what was drawn at random is compared with nothing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers
from safetensors.torch import load_file, save_file

from mha2gqa import SweepOptions, VerifyOptions, sweep, verify
from mha2gqa.errors import SweepError
from mha2gqa.verbs.verify.levels import Check
from mha2gqa.verbs.verify.outcome import Verification
from mha2gqa.verbs.verify.words import summary
from tests.families.tiny import tiny_config
from tests.verbs.verify.subjects import converted, edit_json, save_source, save_text, save_tokenizer


def without(directory: Path, *names: str, prefix: str = "") -> None:
    """Take tensors away, and put a prefix before the names of the others."""
    path = directory / "model.safetensors"
    tensors = load_file(path)
    save_file({prefix + name: one for name, one in tensors.items() if name not in names}, path, {"format": "pt"})


def run(directory: Path, **more: Any) -> Verification:
    options = {"data": (str(directory / "text.txt"),)} | more
    return verify(VerifyOptions(converted=directory / "same", context=32, tokens=160, **options))


def strict(report: Verification) -> Check:
    assert report.load is not None
    return report.load.checks[0]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    save_text(tmp_path / "text.txt", 170)
    return save_source(tmp_path / "source", tie_word_embeddings=False)


def test_without_the_head_hidden_states_are_compared(source: Path) -> None:
    without(source, "lm_head.weight")
    edit_json(source / "config.json", "architectures", value=["LlamaForRewards"])
    converted(source, source.parent / "same", 4)
    report = run(source.parent)
    assert strict(report).passed is None
    assert "missing lm_head.weight in the original, too" in strict(report).detail
    assert report.outputs is None
    assert report.embeddings is not None
    assert report.embeddings.cosines.largest_difference == 0
    assert report.embeddings.layers
    assert report.verdict == "identical"
    assert any("The load is not strict" in reason for reason in report.reasons)


@pytest.mark.parametrize("data", [(), ("self",)])
def test_a_head_at_random_writes_no_text(source: Path, data: tuple[str, ...]) -> None:
    without(source, "lm_head.weight")
    converted(source, source.parent / "same", 4)
    report = run(source.parent, data=data)
    assert (report.verdict, report.compared) == ("identical", None)
    assert "it cannot write the text; with --data its hidden states are compared" in report.reasons[1]


def test_without_a_part_of_the_body_nothing_is_run(source: Path) -> None:
    without(source, "model.layers.1.mlp.up_proj.weight")
    converted(source, source.parent / "same", 2)
    report = run(source.parent)
    assert report.load is not None
    assert [(check.name, check.passed) for check in report.load.checks] == [("strict load", None)]
    assert report.compared is None
    assert "which each load draws at random" in report.reasons[1]
    assert "was not run" in report.reasons[0]
    shown = " ".join(map(str, summary(report)))
    assert "passed" not in shown


def test_a_name_that_the_class_does_not_know_is_named(source: Path) -> None:
    path = source / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"v_head.weight": tensors["model.norm.weight"].clone()}, path, {"format": "pt"})
    converted(source, source.parent / "same", 4)
    report = run(source.parent)
    assert "unexpected v_head.weight in the original, too" in strict(report).detail
    assert report.outputs is not None
    assert report.outputs.largest_logit_difference == 0


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_an_original_with_a_wrappers_names_is_loaded_without_them(source: Path, prefix: str) -> None:
    without(source, prefix=prefix)
    converted(source, source.parent / "same", 4)
    report = run(source.parent)
    assert strict(report).passed is True
    assert strict(report).detail == f"none is left over once {prefix} is taken off the original's keys"
    assert report.outputs is not None
    assert report.verdict == "identical"


def test_a_sweep_recommends_nothing_by_a_head_at_random(source: Path) -> None:
    without(source, "lm_head.weight")
    text = (str(source.parent / "text.txt"),)
    options = SweepOptions(model=str(source), groups=(2,), methods=("mean",), eval_data=text, context=32)
    with pytest.raises(SweepError, match=r"lacks lm_head\.weight, which each load of LlamaForCausalLM draws at random"):
        sweep(replace(options, eval_tokens=160, output=source.parent / "sweep.json"))


@pytest.mark.parametrize("model_type", ["deit", "speech_to_text"])
def test_what_reads_no_text_is_verified_without_any(model_type: str, tmp_path: Path) -> None:
    names = {"deit": "DeiTForImageClassification", "speech_to_text": "Speech2TextForConditionalGeneration"}
    config = tiny_config(model_type, **({"image_size": 16, "patch_size": 8} if model_type == "deit" else {}))
    getattr(transformers, names[model_type])(config).save_pretrained(tmp_path / "source")
    converted(tmp_path / "source", tmp_path / "same", 2)
    report = run(tmp_path, data=())
    assert report.verdict == "within limits"
    assert report.load is not None
    made = [check.passed for check in report.load.checks if check.name == "forward on noise"]
    assert made == [True if model_type == "deit" else None]
    assert "The outputs were not compared" in report.reasons[1]
    assert "not text" in report.reasons[1]
    assert "runs as its original does" not in " ".join(report.reasons)


def test_an_encoder_with_labels_is_refused_by_sweep(tmp_path: Path) -> None:
    transformers.Qwen2ForTokenClassification(tiny_config("qwen2")).save_pretrained(tmp_path / "source")
    save_tokenizer(tmp_path / "source")
    with pytest.raises(SweepError, match="Qwen2ForTokenClassification gives no distribution of tokens"):
        sweep(SweepOptions(model=str(tmp_path / "source"), groups=(2,), output=tmp_path / "s.json"))
