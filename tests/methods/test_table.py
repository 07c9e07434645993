"""The table of methods: what it says of each is so, and a method that joins it needs no other place.

`test_a_new_pooling_is_one_file_and_one_line` adds one to a copy of the package and asks the real command line for it:
in the help, in `convert`, in `verify`, in `sweep` and on the card.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import mha2gqa
from mha2gqa import ConvertOptions, convert, methods
from mha2gqa.errors import OptionError
from mha2gqa.heads.attention import AttentionHeads, Rotary, Statistics
from mha2gqa.heads.grouping import Groups
from mha2gqa.heads.metric import Full
from mha2gqa.methods import AUTO, METHODS, Demand, Method, demand, find_method, layer_method
from tests.verbs.verify.subjects import converted, save_source, save_text

MEDIAN = '''\
"""The median of each group's heads."""

import torch


def median(heads_RN: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return the lower median, number by number, `[N]`."""
    return heads_RN.median(dim=0).values
'''
SEVERAL = """
import io, json, sys

said = []
for sys.argv[1:] in json.loads(sys.argv[1]):
    from mha2gqa import cli, console

    sys.stdout = console.out.file = io.StringIO()
    try:
        cli.main()
    except SystemExit as end:
        assert not end.code, (sys.argv, end.code)
    said.append(sys.stdout.getvalue())
sys.stdout = sys.__stdout__
print(json.dumps(said))
"""
"""Runs several command lines in one process, which imports torch and transformers once."""
LINE = '    "median": Method("mha2gqa.methods.median:median", "Of the heads of each group the median was taken"),\n'


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LAYER = AttentionHeads(
    q_HEX=random(8, 4, 12, seed=0),
    k_KEX=random(4, 4, 12, seed=1),
    v_KFX=random(4, 4, 12, seed=2),
    o_HDF=random(8, 12, 4, seed=3),
    rotary=Rotary(4),
    keys="free",
    values="free",
)
GROUPS: Groups = ((2, 0), (1, 3))
MEASURED = (lambda factor: Full(factor @ factor.T))(random(12, 12, seed=4))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_of_the_kind_that_its_row_says(name: str) -> None:
    method = METHODS[name]
    if method.streams:
        head = method.load()(LAYER.v_KFX[:2].flatten(1), torch.Generator().manual_seed(0))
        assert head.shape == (48,)
        assert not method.reads_text
    merged = layer_method(name, 0)(LAYER, GROUPS, None)
    assert (len(merged.q_HEX), len(merged.k_KEX), len(merged.v_KFX), len(merged.o_HDF)) == (8, 2, 2, 8)
    told = layer_method(name, 0)(LAYER, GROUPS, Statistics(MEASURED, MEASURED))
    assert torch.equal(merged.v_KFX, told.v_KFX) != method.reads_text
    assert method.words[0].isupper()
    assert not method.words.endswith(".")


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        (("mean", "contiguous", None), Demand(whole_layers=False, reads_text=False, needs_text=False)),
        (("random", "contiguous", None), Demand(whole_layers=False, reads_text=False, needs_text=False)),
        (("mean", "similar", None), Demand(whole_layers=True, reads_text=True, needs_text=False)),
        (("mean", "contiguous", "refit"), Demand(whole_layers=True, reads_text=True, needs_text=True)),
        (("aligned", "contiguous", None), Demand(whole_layers=True, reads_text=True, needs_text=False)),
        (("aligned", "similar", "joint"), Demand(whole_layers=True, reads_text=True, needs_text=True)),
        ((AUTO, "contiguous", None), Demand(whole_layers=True, reads_text=True, needs_text=True)),
    ],
)
def test_what_a_combination_asks_for(asked: tuple[str, str, str | None], wanted: Demand) -> None:
    assert demand(*asked) == wanted


def test_auto_is_no_method_and_merges_by_one() -> None:
    assert AUTO not in METHODS
    assert find_method(AUTO) is METHODS[methods.AUTO_METHOD]


def test_a_name_that_is_no_method_is_refused(tmp_path: Path) -> None:
    save_source(tmp_path / "source")
    with pytest.raises(OptionError, match="'meen' is not one of mean, first, random, aligned, auto"):
        convert(ConvertOptions(model=str(tmp_path / "source"), groups=2, output=tmp_path / "out", method="meen"))
    assert not (tmp_path / "out").exists()


def test_a_program_adds_a_method_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tensors: Any) -> None:
    source = save_source(tmp_path / "source")
    text = save_text(tmp_path / "text.txt")
    row = Method("tests.methods.test_table:kept_heads", "Of each group the last head was kept", streams=False)
    monkeypatch.setitem(METHODS, "last", row)
    output = converted(source, tmp_path / "out", 2, method="last")
    before, after = (tensors(path)["model.layers.1.self_attn.v_proj.weight"] for path in (source, output))
    assert torch.equal(after, before.unflatten(0, (4, -1))[[1, 3]].flatten(0, 1))
    record = json.loads((output / "mha2gqa.json").read_text())
    assert [layer["groups"] for layer in record["layers"]] == [[[0, 1], [2, 3]]] * 2
    assert "Of each group the last head was kept without training" in (output / "README.md").read_text()
    with pytest.raises(mha2gqa.Mha2GqaError, match="--method last makes no use of --data"):
        converted(source, tmp_path / "other", 2, method="last", data=(str(text),))


def kept_heads(heads: AttentionHeads, groups: Groups, statistics: Statistics | None = None) -> AttentionHeads:
    """The last head of each group, for `test_a_program_adds_a_method_of_its_own`."""
    assert statistics is not None, "what the weights tell is given to every layer method"
    last = [group[-1] for group in groups]
    return replace(layer_method("first", 0)(heads, groups, None), k_KEX=heads.k_KEX[last], v_KFX=heads.v_KFX[last])


@pytest.mark.slow
def test_a_new_pooling_is_one_file_and_one_line(tmp_path: Path) -> None:
    package = Path(shutil.copytree(Path(mha2gqa.__file__).parent, tmp_path / "code/mha2gqa"))
    (package / "methods/median.py").write_text(MEDIAN)
    table = package / "methods/__init__.py"
    before, opening, after = table.read_text().partition("METHODS: dict[str, Method] = {\n")
    assert opening
    table.write_text(before + opening + LINE + after)
    source = save_source(tmp_path / "source", num_attention_heads=8, num_key_value_heads=8)
    text = save_text(tmp_path / "text.txt", 2000)

    quick = ("--context", 24, "--tokens", 600, "--eval-tokens", 240, "--no-sensitivity", "--json")
    asked = [
        ("convert", "--help"),
        ("sweep", "--help"),
        ("convert", source, "-g", 2, "-o", "out", "--method", "median"),
        ("verify", "out", "--level", "file", "--json"),
        ("sweep", source, "-g", 2, "--methods", "mean,median", "--data", text, *quick),
    ]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "code"), "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    words = json.dumps([[*map(str, arguments)] for arguments in asked])
    command = [sys.executable, "-c", SEVERAL, words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    convert_help, sweep_help, _, verified, swept = json.loads(done.stdout)
    assert "median|mean|first|random|aligned|auto" in convert_help
    assert "median,mean" in sweep_help
    card = (tmp_path / "out/README.md").read_text()
    assert "--method median" in card
    assert "Of the heads of each group the median was taken without training" in card
    level = json.loads(verified)["file"]
    assert (level["recomputed"], level["checksummed"], level["findings"]) == (4, 0, [])
    points = json.loads(swept)["points"]
    assert [point["method"] for point in points] == ["mean", "median"]
    assert points[0]["measured"] != points[1]["measured"]
