"""Uptraining behind a window: the student in its own class, the teacher with every token in reach."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mha2gqa import ConvertOptions, convert
from mha2gqa.model.load import load_model
from mha2gqa.verbs.uptrain.blocks import Packer, collate, keeps_documents_apart
from tests.hosts.test_windows import IDS, T, W, apart, source_model
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


HOSTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "mistral": ("llama", {}, {}),
    "cwm": ("llama", {}, {"window_layers": "1-2"}),
    "nemotron-nas": ("llama", {"num_key_value_heads": 4}, {"window_layers": "0-2", "groups": (1, 4, 2, 2)}),
    "qwen2": ("qwen2", {}, {"window_layers": "0,3"}),
    "olmo3": ("olmo2", {}, {"window_layers": "0-2"}),
    "cohere2": ("cohere", {}, {}),
    "granite_swa": ("granite", {}, {}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "sliding_window": None}, {}),
}
"""Class with a window -> source, its config, and what else is asked for."""


@pytest.mark.parametrize("host", HOSTS)
@torch.no_grad()
def test_packed_documents_behind_a_window_are_as_each_alone(host: str, tmp_path: Path) -> None:
    """Documents shorter and longer than the window, as `uptrain` packs them: the same logits, and losses of labels."""
    source, config, asked = HOSTS[host]
    source_model(source, **config).save_pretrained(tmp_path / "source")
    output = convert(ConvertOptions(model=str(tmp_path / "source"), window=W, output=tmp_path / "out", **asked)).output
    model = load_model(output)
    assert model.config.model_type == host
    assert keeps_documents_apart(model)
    documents = [part.tolist() for part in IDS[0].split([4, 12, 7])]
    packer = Packer(context=T, bos=None, reopens=False, mixes=True)
    batch = collate([row for document in documents for row in packer.add(document)], mixes=True)
    assert batch["input_ids"].tolist() == IDS.tolist()
    fed = {name: batch[name] for name in ("input_ids", "position_ids")}
    packed_BTV = model(**fed, use_cache=False).logits
    alone_BTV = torch.cat([model(input_ids=torch.tensor([ids]), use_cache=False).logits for ids in documents], dim=1)
    assert apart(packed_BTV, alone_BTV) < 1e-5
    counted = batch["labels"][0] != -100
    assert (~counted).nonzero().flatten().tolist() == [0, 4, 16]
    whole_BTV = model(input_ids=IDS, use_cache=False).logits
    assert apart(whole_BTV, alone_BTV) > 1e-3, "documents that see one another are told apart"
