"""`verify` on the command line and from Python: verdicts, exit codes, limits, the report for programs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mha2gqa import ConvertOptions, VerifyOptions, convert, verify
from mha2gqa.progress import WRITING
from mha2gqa.record.conversion import Conversion
from mha2gqa.targets.kv_heads import heads_change
from mha2gqa.targets.target import Change
from mha2gqa.texts import written
from mha2gqa.verbs.verify import outputs_level
from mha2gqa.verbs.verify.judge import EXACT, LOSSY, ROUNDING, limits_for
from mha2gqa.verbs.verify.outcome import Limits
from tests.conftest import Run
from tests.told import Told
from tests.verbs.verify.subjects import converted, flip_bit, save_source, save_text

Cli = Callable[..., Run]
TEXT = ("--data", "text.txt", "--context", 32)


@pytest.fixture
def subject(tmp_path: Path) -> Path:
    converted(save_source(tmp_path / "source"), tmp_path / "converted", 2)
    save_text(tmp_path / "text.txt", 200)
    return tmp_path


def test_a_pooled_model_is_different_and_the_one_record_here_is_found(cli: Cli, subject: Path) -> None:
    run = cli("verify", *TEXT)
    assert run.code == 3
    for words in (
        "llama, 4 -> 2 KV heads, mean",
        "tensors: 17 copied, 4 recomputed and equal; 3 other files; all as expected",
        "text from text.txt: 186 tokens compared, 6 blocks of 32",
        "strict load",
        "1,024 -> 512 measured, 1,024 -> 512 by formula",
        "perplexity",
        "model.layers.1.self_attn",
        "top-1 agreement",
        "verdict  different: perplexity +",
        " %, above the default limit of 1 %: convert it with --method aligned, or take more KV heads.",
    ):
        assert words in run.out, run.out
    assert run.err == ""


def test_an_unchanged_model_is_identical(cli: Cli, subject: Path) -> None:
    converted(subject / "source", subject / "same", 4)
    run = cli("verify", "same", *TEXT)
    assert run.code == 0
    assert "verdict  identical. Nothing differs: no logit differs." in run.out
    run = cli("verify", "same", "--level", "file")
    assert run.code == 0
    assert "verdict  identical. Nothing differs: every tensor is the original's." in run.out


def test_within_the_users_limits_the_exit_code_is_0(cli: Cli, subject: Path) -> None:
    wide = ("--max-ppl-increase", 1000, "--max-kl", 100, "--min-top1", 0)
    run = cli("verify", "converted", *TEXT, *wide)
    assert run.code == 0
    assert "verdict  within limits. The files are what the conversion must have made" in run.out
    for name, value in (("--max-ppl-increase", 0.001), ("--max-kl", 1e-4), ("--min-top1", 1)):
        run = cli("verify", "converted", *TEXT, *wide, name, value)
        assert run.code == 3
        assert "the limit is" in run.out
        assert "default" not in run.out


def test_the_report_is_one_json_object(cli: Cli, subject: Path) -> None:
    run = cli("verify", "converted", *TEXT, "--json")
    assert run.code == 3
    report: dict[str, Any] = json.loads(run.out)
    assert report["verdict"] == "different"
    assert report["conversion"]["groups"]["model.layers.0.self_attn"] == [[0, 1], [2, 3]]
    assert report["file"] == report["file"] | {"compared": 17, "recomputed": 4, "checksummed": 0, "findings": []}
    assert report["load"]["converted_cache"]["measured"] == 512
    outputs = report["outputs"]
    loss = outputs["loss"]
    assert loss["difference"] == pytest.approx(loss["converted"] - loss["original"])
    assert loss["interval"][0] <= loss["difference"] <= loss["interval"][1]
    assert sum(outputs["kl"]["counts"]) == outputs["text"]["tokens"] == 186
    assert [finding["level"] for finding in outputs["findings"]] == ["outputs"] * len(outputs["findings"])


def test_numbers_that_json_lacks_are_null(subject: Path) -> None:
    options = VerifyOptions(
        converted=subject / "converted", data=(str(subject / "text.txt"),), context=64, tokens=64, levels=("outputs",)
    )
    report = verify(options).to_json()
    assert report["outputs"]["loss"]["interval"] is None
    assert report["file"] is report["load"] is None
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_without_text_the_original_writes_it(cli: Cli, subject: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(written, "_BATCH", 2)
    arguments = ("verify", "converted", "--context", 16, "--tokens", 64, "--level", "outputs", "--json")
    reports = [json.loads(cli(*arguments, *seed).out) for seed in ((), ("--seed", 0), ("--seed", 1))]
    for report in reports:
        report["outputs"].pop("seconds")
    assert reports[0] == reports[1]
    assert reports[0]["outputs"]["loss"] != reports[2]["outputs"]["loss"]
    assert reports[0]["outputs"]["text"] == {
        "description": "text sampled from the original itself (temperature 1, seed 0)",
        "sampled": True,
        "blocks": 4,
        "context": 16,
        "tokens": 60,
    }


def test_what_the_original_writes_unasked_is_short(subject: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs_level, "_WRITTEN", 64)
    monkeypatch.setattr(outputs_level, "_WRITTEN_CONTEXT", 16)

    def shape(**asked: int) -> tuple[int, int]:
        level = verify(VerifyOptions(converted=subject / "converted", levels=("outputs",), **asked)).outputs
        assert level is not None
        return level.text.blocks, level.text.context

    assert (shape(), shape(context=32), shape(tokens=32)) == ((4, 16), (2, 32), (2, 16))


def test_it_tells_what_goes_on_and_how_far_the_original_is_with_the_text(subject: Path) -> None:
    told = Told()
    verify(VerifyOptions(converted=subject / "converted", tokens=64, context=16), told)
    assert (told.done[WRITING], told.totals[WRITING]) == (64, {64})
    assert told.under[::2] == ["loading and running both models", "answers of both models, then the text"]


def test_the_reference_is_verified_on_its_held_out_text(tmp_path: Path) -> None:
    convert(ConvertOptions(groups=4, output=tmp_path / "reference"))
    report = verify(VerifyOptions(converted=tmp_path / "reference", tokens=2048, levels=("file", "outputs")))
    assert report.verdict == "different"
    assert report.file is not None
    assert not report.file.findings
    assert report.outputs is not None
    assert report.outputs.text.description.startswith("held-out text of the reference checkpoint")
    assert report.outputs.loss is not None
    assert 2 < report.outputs.loss.original < 3 < report.outputs.loss.converted < 5


def test_levels_are_run_as_asked(subject: Path) -> None:
    for level in ("file", "load", "outputs"):
        options = VerifyOptions(
            converted=subject / "converted",
            data=(str(subject / "text.txt"),),
            context=32,
            levels=(level,),
        )
        report = verify(options)
        made = {"file": report.file, "load": report.load, "outputs": report.outputs}
        assert [name for name, result in made.items() if result is not None] == [level]


def test_progress_adds_up(subject: Path) -> None:
    told = Told()
    options = VerifyOptions(
        converted=subject / "converted", data=(str(subject / "text.txt"),), context=32, batch_size=4
    )
    verify(options, told)
    assert {stage: {done} for stage, done in told.done.items()} == told.totals
    assert told.done["outputs"] == 192
    assert told.done["files"] == sum(
        tensor.numel() * 4 for tensor in _tensors(subject / "converted/model.safetensors").values()
    )


def _tensors(file: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(file))


def test_a_fault_in_the_files_makes_the_exit_code_3(cli: Cli, subject: Path) -> None:
    converted(subject / "source", subject / "same", 4)
    shutil.rmtree(subject / "converted")
    flip_bit(subject / "same", "model.norm.weight", 0)  # the last bit of a number: no limit is passed
    run = cli("verify", "same", "--level", "file", "--level", "load")
    assert run.code == 3
    assert "model.norm.weight  differs from the original's" in run.out


@pytest.mark.parametrize(
    ("change", "limits"),
    [
        (heads_change(8, 4, "loss"), LOSSY),
        (heads_change(8, 8, "loss"), EXACT),
        (heads_change(2, 8, "rounding"), ROUNDING),
        (heads_change(8, 8, "rounding"), EXACT),
    ],
)
def test_limits_follow_from_the_conversion(change: Change, limits: Limits) -> None:
    conversion = Conversion(
        command="convert",
        options={},
        targets=("kv_heads",),
        model_type="llama",
        change=change,
        config_changes=[],
        groups={},
        dropped=(),
    )
    assert limits_for(conversion, VerifyOptions()) == limits
    assert limits_for(conversion, VerifyOptions(max_kl=0.5)).max_kl == 0.5
    assert limits.exact == (limits is EXACT)


def test_limits_are_not_claimed_where_outputs_were_not_compared(cli: Cli, tmp_path: Path) -> None:
    """A broken model loads and runs; only its outputs tell."""
    made = converted(save_source(tmp_path / "source"), tmp_path / "made", 1)
    answer = cli("verify", made, "--level", "load", "--report", tmp_path / "page")
    assert answer.code == 0 and "within limits" not in answer.out
    assert "no fault found. The checkpoint runs as its original does. How far its outputs are" in " ".join(
        answer.out.split()
    )
    assert "No fault found" in next((tmp_path / "page").glob("*.html")).read_text()
