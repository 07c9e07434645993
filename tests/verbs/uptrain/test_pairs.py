"""Uptraining of encoder-decoders: the loss against transformers' own class in fp64, what trains, and what comes out."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForSeq2SeqLM

from mha2gqa import UptrainOptions, uptrain
from mha2gqa.verbs.uptrain import run as uptrain_command
from mha2gqa.verbs.uptrain.blocks import read_blocks
from mha2gqa.verbs.uptrain.pairs import Pairs, mean_cross_entropy
from mha2gqa.verbs.uptrain.trainer import UptrainTrainer
from tests.verbs.uptrain.pair_subjects import TEXT_TO_TEXT, pair_options, pairs_tokenizer, save_pair_subject, save_pairs

Tensors = dict[str, torch.Tensor]
Rows = dict[str, list[tuple[list[int], list[int]]]]


@pytest.fixture
def subject(tmp_path: Path) -> tuple[Path, Path]:
    return save_pair_subject(tmp_path)


def trained(options: UptrainOptions) -> Any:
    report = uptrain(options)
    assert report is not None
    return report


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> Rows:
    """What a run learns from and measures on, as token numbers, once it has begun."""
    found: Rows = {}
    prepare = uptrain_command.prepare_text

    def keep(work: Path, *arguments: Any) -> Any:
        text = prepare(work, *arguments)
        for name in ("training", "held-out"):
            blocks = read_blocks(work / f"{name}.arrow")
            found[name] = [(row["input_ids"].tolist(), row["labels"].tolist()) for row in blocks]
        return text

    monkeypatch.setattr(uptrain_command, "prepare_text", keep)
    return found


def exact(directory: Path) -> Any:
    """The class that ships, or transformers' own, in fp64; loaded by transformers alone."""
    return AutoModelForSeq2SeqLM.from_pretrained(directory, dtype=torch.float64, trust_remote_code=True)


@torch.no_grad()
def answers(model: Any, pairs: list[tuple[list[int], list[int]]]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield logits `[T, V]` and labels of each pair, read alone and without padding."""
    for source, target in pairs:
        labels = torch.tensor([target])
        yield model(input_ids=torch.tensor([source]), labels=labels).logits[0], labels[0]


@pytest.mark.parametrize("model_type", ["t5", "bart"])
def test_the_first_loss_is_that_of_every_pair_read_alone(model_type: str, tmp_path: Path, rows: Rows) -> None:
    """One batch holds all pairs, so no order matters; the oracle knows nothing of padding, masks or batches."""
    subject = save_pair_subject(tmp_path, model_type)
    options = {"objective": "mix", "temperature": 2.0, "lm_weight": 0.25, "steps": 1}
    report = trained(pair_options(subject, **options, trainer={"per_device_train_batch_size": 70}))
    models = (exact(subject[0]), exact(tmp_path / "original"))
    assert 60 < len(rows["training"]) <= 70
    assert len({len(source) for source, _ in rows["training"]}) > 5
    total = count = 0.0
    for (answer, labels), (wanted, _) in zip(*(answers(model, rows["training"]) for model in models), strict=True):
        q, p = (logits.div(2).log_softmax(-1) for logits in (answer, wanted))
        total += 0.25 * functional.cross_entropy(answer, labels, reduction="sum").item()
        total += 0.75 * 4 * (p.exp() * (p - q)).sum().item()
        count += len(labels)
    assert report.series("loss")[0][1] == pytest.approx(total / count, rel=1e-4)


def test_the_held_out_losses_are_those_of_transformers_and_of_other_sources(
    subject: tuple[Path, Path], rows: Rows
) -> None:
    report = trained(pair_options(subject, objective="lm", trainer={"per_device_train_batch_size": 20}))
    for directory, loss in ((subject[0], "before"), (report.output, "after"), (report.original, "original")):
        found = [
            functional.cross_entropy(logits, labels, reduction="none")
            for logits, labels in answers(exact(Path(directory)), rows["held-out"])
        ]
        assert getattr(report.losses, loss) == pytest.approx(torch.cat(found).mean().item(), rel=1e-5)
        assert report.losses.tokens == len(torch.cat(found))
    assert report.losses.after < report.losses.before
    sources = {tuple(source) for source, _ in rows["training"]}
    assert not sources & {tuple(source) for source, _ in rows["held-out"]}
    assert len(sources) < len(rows["training"])
    assert report.text_tokens == sum(len(source) + len(target) for source, target in rows["training"])
    assert report.rounds == pytest.approx(4 * 20 / len(rows["training"]))


def test_the_held_out_pairs_count_with_their_sources_and_targets(subject: tuple[Path, Path], rows: Rows) -> None:
    trained(pair_options(subject, steps=1, held_out=(str(subject[1]),), held_out_tokens=100, data=(_more(subject[1]),)))
    tokens = [len(source) + len(target) for source, target in rows["held-out"]]
    assert sum(tokens[:-1]) < 100 <= sum(tokens)
    assert sum(len(source) for source, _ in rows["held-out"]) < 100


def _more(pairs: Path) -> str:
    """Write pairs that the others are not among."""
    more = pairs.with_name("more.jsonl")
    more.write_text("".join(json.dumps({"source": "!" * count, "target": "?"}) + "\n" for count in range(3, 20)))
    return str(more)


def test_accumulated_batches_count_every_token_once(subject: tuple[Path, Path]) -> None:
    """transformers' T5 takes the mean of each batch, whatever the number of its tokens."""
    small = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    losses = [
        trained(pair_options(subject, objective=objective, steps=2, force=True, trainer=trainer)).series("loss")
        for objective in ("lm", "mix")
        for trainer in (small, {"per_device_train_batch_size": 8})
    ]
    for one, other in (losses[:2], losses[2:]):
        assert [loss for _, loss in one] == pytest.approx([loss for _, loss in other], rel=1e-5)


DECODER = {"SelfAttention", "EncDecAttention"}


@pytest.mark.parametrize(
    ("train", "groups", "moves"),
    [
        ("attention", 2, lambda name: name.startswith("decoder") and ".layer.2." not in name and "norm" not in name),
        ("attention", {"cross": 1}, lambda name: "EncDecAttention" in name),
        ("kv", {"encoder": 2, "decoder": 2}, lambda name: "SelfAttention" in name and name[-9:-7] in (".k", ".v")),
        ("all", 2, lambda name: True),
    ],
)
def test_gradients_are_only_where_they_belong(
    train: Any, groups: Any, moves: Callable[[str], bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = save_pair_subject(tmp_path, groups=groups)
    seen: list[dict[str, bool]] = []
    step = UptrainTrainer.training_step

    def look(self: Any, model: Any, *arguments: Any) -> torch.Tensor:
        loss = step(self, model, *arguments)
        seen.append({name: one.grad is not None and bool(one.grad.any()) for name, one in model.named_parameters()})
        assert all(one.grad is None for one in self._original.parameters())
        return loss

    monkeypatch.setattr(UptrainTrainer, "training_step", look)
    trained(pair_options(subject, train=train, steps=1))
    named = {name for name in seen[0] if "final_layer_norm" not in name and "relative_attention_bias" not in name}
    assert {name for name in named if seen[0][name]} == {name for name in named if moves(name)}


def test_a_merged_adapter_is_plain_weights(subject: tuple[Path, Path], tensors: Callable[[Path], Tensors]) -> None:
    report = trained(pair_options(subject, train="lora", lora_rank=2, hidden_weight=0.1))
    before, after = tensors(subject[0]), tensors(report.output)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert len(changed) == 2 * 2 * 4 == report.changed
    assert all(name.startswith("decoder") and any(part in name for part in DECODER) for name in changed)


def test_a_run_that_breaks_off_goes_on_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tensors: Callable[[Path], Tensors]
) -> None:
    """With dropout, so that the random numbers have to go on as well."""
    subject = save_pair_subject(tmp_path, dropout_rate=0.2)
    whole = trained(pair_options(subject, steps=5, output=tmp_path / "whole"))
    step = UptrainTrainer.training_step

    def break_off(self: Any, *arguments: Any) -> torch.Tensor:
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return step(self, *arguments)

    options = pair_options(subject, steps=5, output=tmp_path / "broken")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(UptrainTrainer, "training_step", break_off)
        uptrain(options)
    assert not (tmp_path / "broken").exists()
    rest = trained(pair_options(subject, steps=5, output=tmp_path / "broken", resume=True))
    assert rest.series("loss") == whole.series("loss")
    assert rest.losses == whole.losses
    one, other = tensors(tmp_path / "whole"), tensors(tmp_path / "broken")
    assert all(torch.equal(one[name], other[name]) for name in one)


def task_of(outline: Any, **options: Any) -> Pairs:
    return Pairs(
        options=UptrainOptions(**options),
        tokenizer=pairs_tokenizer(),
        source_tokens=24,
        target_tokens=12,
        vocabulary=128,
        outline=outline,
    )


def test_all_targets_of_a_source_share_its_key(tmp_path: Path) -> None:
    keys: dict[tuple[int, ...], set[int]] = {}
    for key, row in task_of(None, data=(str(save_pairs(tmp_path / "pairs.jsonl")),)).training():
        keys.setdefault(tuple(row["input_ids"]), set()).add(key)
    assert len(keys) < 60
    assert len({key for found in keys.values() for key in found}) == len(keys)
    assert all(len(found) == 1 for found in keys.values())


@pytest.mark.parametrize("family", TEXT_TO_TEXT, ids=str)
def test_a_batch_is_what_the_class_makes_of_the_labels(family: Any) -> None:
    """The class derives its decoder's inputs from the labels; a batch, which the original reads too, has them ready."""
    model = family.native()
    model.config.pad_token_id, model.config.decoder_start_token_id = 0, 2
    task = task_of(model)
    rows = [{"input_ids": [5, 6, 7, 2], "labels": [8, 9, 2]}, {"input_ids": [5, 2], "labels": [8, 9, 10, 11, 2]}]
    batch = task.collate(rows)
    own = model(**{name: batch[name] for name in ("input_ids", "attention_mask", "labels")}).loss
    labels = batch.pop("labels")
    outputs = model(**batch, output_hidden_states=True)
    torch.testing.assert_close(mean_cross_entropy(outputs, labels), own)
    assert [state.shape[1] for state in outputs[task.states]] == [labels.shape[1]] * 3
    assert labels.tolist() == [[8, 9, 2, -100, -100], [8, 9, 10, 11, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert torch.equal(task.targets(labels), labels)


def test_without_the_original_the_pairs_are_learned(subject: tuple[Path, Path]) -> None:
    shutil.rmtree(subject[0].parent / "original")
    report = trained(pair_options(subject, steps=1))
    assert (report.objective, report.original) == ("lm", None)


def test_a_prefix_stands_before_every_source_and_texts_are_cut(subject: tuple[Path, Path], rows: Rows) -> None:
    trained(pair_options(subject, steps=1, source_prefix="abc", context=8, target_context=4))
    known = pairs_tokenizer()
    assert all(source[:3] == known("abc")["input_ids"][:3] for source, _ in rows["training"])
    assert max(len(source) for source, _ in rows["training"]) == 8
    assert max(len(target) for _, target in rows["training"]) == 4
