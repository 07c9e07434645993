"""Uptraining behind a window: the student in its own class, the teacher with every token in reach."""

from collections.abc import Callable
from pathlib import Path

import torch

from mha2gqa import ConvertOptions, convert
from tests.verbs.uptrain.subjects import save_documents, trained
from tests.verbs.verify.subjects import save_source


def test_a_window_alone_can_be_distilled(tmp_path: Path, tensors: Callable[[Path], dict[str, torch.Tensor]]) -> None:
    """No head was merged, and yet something was lost: attention trains, all of it, and the window stays."""
    source = save_source(tmp_path / "original")
    result = convert(ConvertOptions(model=str(source), window=4, output=tmp_path / "converted")).output
    report = trained((result, save_documents(tmp_path / "documents.jsonl")), objective="distil")
    before, after = tensors(result), tensors(report.output)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert report.losses.original != report.losses.before
    assert '"sliding_window": 4' in (report.output / "config.json").read_text()
