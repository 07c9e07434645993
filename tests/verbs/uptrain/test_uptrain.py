"""Uptraining as a whole: golden losses, what changes and what does not, and what the output is."""

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM

from mha2gqa import VerifyOptions, uptrain, verify
from mha2gqa.errors import TextError
from mha2gqa.record.record import read_record
from mha2gqa.verbs.uptrain import rates, words
from mha2gqa.verbs.uptrain import run as uptrain_command
from mha2gqa.verbs.uptrain.blocks import read_blocks
from mha2gqa.verbs.uptrain.page import uptrain_page
from mha2gqa.verbs.uptrain.running_text import RunningText
from mha2gqa.verbs.uptrain.trainer import UptrainTrainer
from tests.verbs.uptrain.subjects import QUICK, options, save_documents, save_latent_subject, save_subject, trained
from tests.verbs.verify.subjects import BOS, converted, flip_bit, save_source

Tensors = dict[str, torch.Tensor]
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}


@pytest.fixture
def subject(tmp_path: Path) -> tuple[Path, Path]:
    return save_subject(tmp_path)


def _changed(before: Tensors, after: Tensors) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize(
    ("train", "parts"),
    [("attention", ATTENTION), ("kv", {"k_proj", "v_proj"}), ("lora", ATTENTION)],
)
def test_only_what_trains_changes(
    train: Any, parts: set[str], subject: tuple[Path, Path], tensors: Callable[[Path], Tensors]
) -> None:
    report = trained(subject, train=train, objective="lm")
    changed = _changed(tensors(subject[0]), tensors(report.output))
    assert {name.split(".")[-2] for name in changed} == parts
    assert len(changed) == 2 * len(parts) == report.changed
    assert report.losses.after < report.losses.before


def test_all_changes_everything(subject: tuple[Path, Path], tensors: Callable[[Path], Tensors]) -> None:
    report = trained(subject, train="all", objective="lm")
    before = tensors(subject[0])
    assert _changed(before, tensors(report.output)) == before.keys()
    assert report.parameters["trained"] == report.parameters["all"]


@pytest.mark.parametrize(
    ("train", "model_type", "dtype"),
    [
        ("attention", "llama", "float32"),
        ("lora", "llama", "bfloat16"),
        ("attention", "llama", "float16"),
        ("attention", "qwen2", "bfloat16"),
        ("lora", "qwen2", "float32"),
    ],
)
def test_a_latent_learns_as_a_whole(
    train: Any, model_type: str, dtype: str, tmp_path: Path, tensors: Callable[[Path], Tensors]
) -> None:
    """In the file what is normed is so small that any step of an optimiser would destroy it."""
    subject = save_latent_subject(tmp_path, model_type, dtype=dtype)
    trainer = {"per_device_train_batch_size": 16, "bf16": dtype == "bfloat16"}
    report = trained(subject, train=train, steps=16, objective="distil", trainer=trainer)
    losses = [loss for _, loss in report.series("loss")]
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    before, after = tensors(subject[0]), tensors(report.output)
    parts = {name for name in before if "self_attn" in name and "norm" not in name}
    assert _changed(before, after) == {name for name in parts if train == "attention" or name.endswith("weight")}
    assert {name: one.dtype for name, one in before.items()} == {name: one.dtype for name, one in after.items()}
    assert verify(VerifyOptions(converted=report.output, levels=("file", "load"))).findings == ()


GOLDEN = {
    "lm": [5.5446, 5.22804, 4.93194, 4.70383],
    "distil": [1.10458, 1.0071, 0.84386, 0.89628],
    "mix": [3.32459, 3.07645, 2.96131, 2.895],
}
"""Losses of the first steps, as they were when they were first right."""


@pytest.mark.parametrize("objective", GOLDEN)
def test_the_first_losses_are_the_golden_ones(objective: Any, subject: tuple[Path, Path]) -> None:
    report = trained(subject, objective=objective)
    assert [loss for _, loss in report.series("loss")] == pytest.approx(GOLDEN[objective], rel=1e-3)
    assert [step for step, _ in report.series("eval_loss")] == [0, 2, 4]


def _blocks_of(work: Path) -> list[tuple[list[int], list[int]]]:
    rows = read_blocks(work / "training.arrow")
    return [(row["input_ids"].tolist(), row["position_ids"].tolist()) for row in rows]


@torch.no_grad()
def _by_document(model: Any, ids: list[int], positions: list[int]) -> Iterator[torch.Tensor]:
    """Yield log-probabilities `[T - 1, V]` and targets of each document of a block, read alone, in fp64."""
    starts = [place for place, position in enumerate(positions) if position == 0] + [len(ids)]
    for start, end in itertools.pairwise(starts):
        if end - start > 1:
            part = torch.tensor([ids[start:end]])
            yield model(part).logits[0, :-1].log_softmax(-1), part[0, 1:]


def test_the_first_loss_is_that_of_every_document_read_alone(
    subject: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One batch holds all blocks, so no order matters; the oracle knows nothing of packing, chunks or batches."""
    models = [
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)
        for path in (subject[0], subject[0].parent / "original")
    ]
    blocks: list[tuple[list[int], list[int]]] = []
    prepare = uptrain_command.prepare_text

    def keep(work: Path, *arguments: Any) -> Any:
        text = prepare(work, *arguments)
        blocks.extend(_blocks_of(work))
        return text

    monkeypatch.setattr(uptrain_command, "prepare_text", keep)
    report = trained(subject, steps=1, temperature=2.0, trainer={"per_device_train_batch_size": 40})
    total, count = 0.0, 0
    assert 10 < len(blocks) <= 40
    for block in blocks:
        for (answer, _), (wanted, _) in zip(*(_by_document(model, *block) for model in models), strict=True):
            q, p = (logs.div(2).log_softmax(-1) for logs in (answer, wanted))
            total += 4 * (p.exp() * (p - q)).sum().item()
            count += len(p)
    assert report.series("loss")[0][1] == pytest.approx(total / count, rel=1e-4)


def test_gradients_are_only_where_they_belong(subject: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, bool]] = []
    step = UptrainTrainer.training_step

    def look(self: Any, model: Any, *arguments: Any) -> torch.Tensor:
        loss = step(self, model, *arguments)
        seen.append({name: one.grad is not None and bool(one.grad.any()) for name, one in model.named_parameters()})
        assert sum(len(group["params"]) for group in self.optimizer.param_groups) == 8
        assert all(one.grad is None for one in self._original.parameters())
        return loss

    monkeypatch.setattr(UptrainTrainer, "training_step", look)
    trained(subject, steps=1)
    assert {name for name, has in seen[0].items() if has} == {
        f"model.layers.{layer}.self_attn.{part}.weight" for layer in (0, 1) for part in ATTENTION
    }


def test_a_merged_adapter_answers_like_the_adapter(subject: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    ids = torch.randint(3, 60, (2, 16), generator=torch.Generator().manual_seed(1))
    adapted: list[torch.Tensor] = []
    load = uptrain_command.load_trained

    def look(job: Any, weights: Path, **more: Any) -> Any:
        base = AutoModelForCausalLM.from_pretrained(subject[0])
        with torch.no_grad():
            adapted.append(PeftModel.from_pretrained(base, weights)(ids).logits)
        return load(job, weights, **more)

    monkeypatch.setattr(uptrain_command, "load_trained", look)
    report = trained(subject, train="lora", lora_rank=4)
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(report.output)(ids).logits
        before = AutoModelForCausalLM.from_pretrained(subject[0])(ids).logits
    torch.testing.assert_close(merged, adapted[0], rtol=1e-4, atol=1e-4)
    assert (merged - before).abs().max().item() > 1e-2


def test_the_output_is_an_ordinary_checkpoint_with_a_record_and_a_card(
    tmp_path: Path, tensors: Callable[[Path], Tensors]
) -> None:
    source = save_source(tmp_path / "original", shards=3)
    halved = AutoModelForCausalLM.from_pretrained(source).bfloat16()
    halved.save_pretrained(source, max_shard_size="60KB")
    subject = converted(source, tmp_path / "converted", 2), save_documents(tmp_path / "documents.jsonl")
    report = trained(subject)
    files = {path.name for path in report.output.iterdir()}
    assert {path.name for path in subject[0].iterdir()} | {"uptrain.yaml", "loss.png"} == files
    assert {one.dtype for one in tensors(report.output).values()} == {torch.bfloat16}
    index = "model.safetensors.index.json"
    maps = [json.loads((path / index).read_text())["weight_map"] for path in (subject[0], report.output)]
    assert maps[0] == maps[1]
    assert len(set(maps[0].values())) > 1
    assert (report.output / "config.json").read_bytes() == (subject[0] / "config.json").read_bytes()
    (entry,) = read_record(report.output).conversion.uptrain
    assert entry["losses"]["after"] == report.losses.after
    assert (entry["train"], entry["objective"], entry["length"]["steps"]) == ("attention", "distil", 4)
    card = (report.output / "README.md").read_text()
    assert "without training" not in card
    assert f"| uptrained (this checkpoint) | {report.losses.after:.4f} |" in card
    assert yaml.safe_load((report.output / "uptrain.yaml").read_text())["trainer"]["learning_rate"] == 1e-2
    assert not (tmp_path / ".uptrained.uptrain").exists()
    _check_loss_on_disk(report, tmp_path)


def _check_loss_on_disk(report: Any, folder: Path) -> None:
    """The loss that is reported is that of the files: measured again on a second, empty training."""
    again = trained((report.output, folder / "documents.jsonl"), output=folder / "again", steps=1)
    assert again.losses.before == pytest.approx(report.losses.after, rel=1e-5)
    assert again.losses.original == pytest.approx(report.losses.original, rel=1e-6)
    assert len(read_record(folder / "again").conversion.uptrain) == 2


def test_the_page_holds_the_losses_and_the_recipe(subject: tuple[Path, Path], tmp_path: Path) -> None:
    report = trained(subject, objective="lm", report=tmp_path / "page", seed=7)
    html = (tmp_path / "page/report.html").read_text()
    for loss in (report.losses.before, report.losses.after, report.losses.original):
        assert f">{loss:.4f}</td>" in html
    assert "seed: 7" in html
    assert '<svg class="plot"' in html
    assert (
        f"{report.losses.gap_closed:.1%} of the gap closed" in html if report.losses.gap_closed else "Uptrained" in html
    )
    assert "http" not in html.replace("http://www.w3.org", "").replace("http-equiv", "")


def test_a_figure_of_the_run_that_is_not_the_reports_is_explained(subject: tuple[Path, Path], tmp_path: Path) -> None:
    """In fp32 nothing is rounded; a run that was rounded measures its last step twice, and both are told apart."""
    page = tmp_path / "page"
    report = trained(subject, keep="last", report=page)
    assert report.losses is not None and report.step == 4
    assert report.in_training == pytest.approx(report.losses.after, abs=5e-5)
    own = replace(report, losses=replace(report.losses, after=report.in_training))
    assert not any("on disk" in part for part in words.summary(own) if isinstance(part, str))
    rounded = replace(report, losses=replace(report.losses, after=report.in_training + 0.02))
    (told,) = [part for part in words.summary(rounded) if isinstance(part, str) and "on disk" in part]
    assert f"on disk has {rounded.losses.after:.4f}" in told
    assert f"step 4 measured {report.in_training:.4f}" in told
    assert told.strip() in uptrain_page(rounded)
    assert rounded.to_json()["in_training"] == report.in_training
    kept = replace(rounded, step=0)
    assert kept.in_training is None


def test_verify_accepts_the_output_and_finds_a_flipped_bit(subject: tuple[Path, Path]) -> None:
    report = trained(subject)
    levels = VerifyOptions(converted=report.output, levels=("file", "load"))
    proof = verify(levels)
    assert not proof.findings
    assert proof.file.checksummed == report.changed == 8
    assert proof.conversion.trainings == ("attention, distil, 4 steps",)
    flip_bit(report.output, "model.layers.1.self_attn.q_proj.weight")
    assert [one.guilty for one in verify(levels).file.findings] == ["model.layers.1.self_attn.q_proj.weight"]


def test_the_best_weights_are_kept(subject: tuple[Path, Path]) -> None:
    """A learning rate that grows too large makes the last weights worse than earlier ones."""
    trainer = {"learning_rate": 0.5, "warmup_steps": 8, "lr_scheduler_type": "constant_with_warmup", "eval_steps": 1}
    last = trained(subject, steps=8, objective="lm", trainer=trainer | {"save_steps": 1})
    best = trained(subject, steps=8, objective="lm", trainer=trainer | {"save_steps": 1}, keep="best", force=True)
    measured = dict(best.series("eval_loss"))
    assert best.step == min(measured, key=lambda step: measured[step]) > 0
    assert best.losses.after == pytest.approx(measured[best.step], rel=1e-5)
    assert best.losses.after < last.losses.after


def test_where_nothing_is_gained_the_start_is_kept(
    subject: tuple[Path, Path], tensors: Callable[[Path], Tensors], cli: Callable[..., Any]
) -> None:
    output = subject[0].parent / "uptrained"
    words = ["uptrain", subject[0], "--data", subject[1], "--context", 32, "--steps", 2, "--held-out-tokens", 200]
    words += [
        "--trainer",
        "use_cpu=true",
        "--trainer",
        "learning_rate=5.0",
        "--trainer",
        "warmup_steps=0",
        "-o",
        output,
    ]
    kept = cli(*words)
    assert kept.code == 0
    assert "Nothing was gained" in kept.out
    assert "Nothing was gained" in (output / "README.md").read_text()
    assert not _changed(tensors(subject[0]), tensors(output))
    assert not verify(VerifyOptions(converted=output, levels=("file",))).findings
    last = cli(*words, "--keep", "last", "--force")
    assert last.code == 3
    assert "worse than what it began with" in " ".join(last.out.split())


def test_a_rate_that_is_not_named_is_the_one_that_gains_most(
    subject: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The highest makes it worse, the third gains less than the second; the run is then the one that has it by name."""
    losses = iter((5.0, 6.0, 4.9, 4.95))
    measured: list[float] = []

    def told(*arguments: Any) -> float:
        measured.append(loss(*arguments))
        return next(losses)

    loss = rates._loss
    monkeypatch.setattr(rates, "_loss", told)
    quick = {name: value for name, value in QUICK.items() if name != "learning_rate"}
    whole = options(subject, steps=6)
    chosen = uptrain(replace(whole, trainer=quick))
    assert chosen is not None
    assert [one.rate for one in chosen.trials] == [0, 3e-3, 3e-3 / 4, 3e-3 / 16]
    assert chosen.learning_rate == 3e-3 / 4
    assert len(set(measured)) == 4, "each rate has made another model"
    assert f"learning_rate: {chosen.learning_rate}" in (chosen.output / "uptrain.yaml").read_text()
    by_name = uptrain(replace(whole, trainer=quick | {"learning_rate": chosen.learning_rate}, force=True))
    assert by_name is not None
    assert by_name.trials == ()
    assert by_name.series("loss") == chosen.series("loss"), "trying has left nothing behind"


@pytest.mark.parametrize(("steps", "at_each"), [(1, 1), (2, 2), (6, 3), (100, 5), (5000, 10)])
def test_a_rate_is_tried_for_a_part_of_the_run(steps: int, at_each: int) -> None:
    assert rates.steps_at_each(steps) == at_each


def test_only_answers_are_learned_where_that_is_asked_for(
    subject: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": f"Q{number} " * 3, "completion": "YES" * 4} for number in range(120)]
    subject[1].write_text("\n".join(map(json.dumps, rows)))
    read: dict[str, str] = {}
    collate = RunningText.collate

    def look(self: RunningText, rows: Any) -> Any:
        batch = collate(self, rows)
        labels = batch["labels"][batch["labels"] != -100]
        read[self.options.learn_from or "default"] = self.tokenizer.decode(labels).replace(" ", "")
        return batch

    monkeypatch.setattr(RunningText, "collate", look)
    for learn_from in (None, "answers", "all"):
        trained(subject, steps=1, learn_from=learn_from, force=True)
    assert set(read["default"]) == set(read["answers"]) == set("YES")
    assert {"Q", "Y"} <= set(read["all"])
    subject[1].write_text("\n".join(json.dumps({"text": "A" * 60}) for _ in range(120)))
    with pytest.raises(TextError, match="--learn-from answers needs conversations"):
        trained(subject, learn_from="answers", force=True)


def test_without_the_original_the_text_is_learned(subject: tuple[Path, Path]) -> None:
    shutil.rmtree(subject[0].parent / "original")
    report = trained(subject)
    assert (report.objective, report.original, report.losses.original) == ("lm", None, None)
    assert report.losses.after < report.losses.before


def test_text_that_the_original_writes(subject: tuple[Path, Path], tmp_path: Path) -> None:
    samples = tmp_path / "samples.jsonl"
    first = trained(subject, data=("self",), samples=samples)
    written = samples.read_text()
    again = trained(subject, data=("self",), samples=samples, force=True)
    assert samples.read_text() == written
    assert again.series("loss") == first.series("loss")
    samples.write_text(written[: len(written) // 2])
    trained(subject, data=("self",), samples=samples, force=True)
    assert samples.read_text() == written, "a batch that was cut off is written again, with the same numbers"


def test_training_never_sees_the_held_out_documents(
    subject: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[str]] = []
    prepare = uptrain_command.prepare_text

    def keep(*arguments: Any) -> Any:
        text = prepare(*arguments)
        for blocks in (text.training, text.held_out):
            ids = [token for row in blocks for token in row["input_ids"].tolist()]
            seen.append(set("".join(chr(one) for one in ids).split(chr(BOS))) - {""})
        return text

    documents = subject[1].read_text()
    subject[1].write_text(documents * 2)
    monkeypatch.setattr(uptrain_command, "prepare_text", keep)
    trained(subject, steps=40, trainer={"eval_strategy": "no", "save_strategy": "no"})
    training, held_out = seen
    whole = {one for one in held_out if len(one) > 20}
    assert len(whole) > 2
    assert not whole & training


def test_a_class_that_cannot_tell_documents_apart_reads_one_a_block(tmp_path: Path) -> None:
    report = trained(save_subject(tmp_path, model_type="falcon_h1"), steps=2, objective="lm")
    assert not report.mixes
    assert report.losses.after < report.losses.before


def test_options_reach_the_trainer_as_they_are(subject: tuple[Path, Path]) -> None:
    trainer = {"gradient_accumulation_steps": 2, "gradient_checkpointing": True, "weight_decay": 0.1}
    report = trained(subject, steps=2, objective="mix", hidden_weight=0.5, trainer=trainer)
    assert report.length.tokens_per_step == 2 * 2 * 32
    assert report.recipe["trainer"]["weight_decay"] == 0.1
