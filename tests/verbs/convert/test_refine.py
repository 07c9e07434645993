"""Conversions that change whole attention layers, at the command line: each way from the request to the verified files.

    WAYS                what is asked for; each is planned, converted, recorded, described and verified
    same bytes          for the same seed, whatever the memory for activations
    the options file    a recipe, and the text that the reference brings with it
    batches             what a step reads, for little text and much
    smaller steps       a layer that training makes worse is trained again

Refusals are in `test_refine_refused.py`, interrupted runs in `test_refine_interrupted.py`.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mha2gqa import ConvertOptions, convert
from mha2gqa.refine import refine
from mha2gqa.refine.descend import Descent, distil
from mha2gqa.verbs.convert.layerwise import batches
from tests.verbs.verify.subjects import flip_bit, save_source, save_text

ATTENTION = {f"model.layers.{layer}.self_attn.{part}_proj.weight" for layer in (0, 1) for part in "qkvo"}
MODULES = ["model.layers.0.self_attn", "model.layers.1.self_attn"]
TEXT = ("--method", "aligned", "--data", "text.txt")
WAYS: dict[str, tuple[object, ...]] = {
    "aligned": ("--method", "aligned", "--data", "none"),
    "similar": ("--grouping", "similar"),
    "statistics": ("--method", "aligned", "--grouping", "similar", "--data", "text.txt"),
    "own text": ("--method", "aligned", "--data", "self", "--tokens", 512),
    "refit": (*TEXT, "--refine", "refit"),
    "distil": (*TEXT, "--refine", "distil", "--steps", 3, "--grouping", "similar"),
    "joint": (*TEXT, "--refine", "joint", "--steps", 3),
    "mean": ("--refine", "distil", "--data", "text.txt", "--steps", 3),
    "auto": ("--method", "auto", "--data", "text.txt", "--steps", 3, "--max-ppl-increase", 0),
}
STEPS = {
    "None": [],
    "refit": ["merged", "refit"],
    "distil": ["merged", "refit", "distil"],
    "joint": ["merged", "refit", "distil"],
}
"""What the record says of the errors of a layer; auto's depend on what it chooses."""


@pytest.fixture(scope="session")
def readable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_source(tmp_path_factory.mktemp("readable") / "source")


@pytest.fixture
def source(readable: Path, tmp_path: Path) -> Path:
    """A tiny Llama with a tokenizer, and a text for it beside it, in the working directory."""
    save_text(tmp_path / "text.txt", 2000)
    return Path(shutil.copytree(readable, tmp_path / "source"))


def ways(*names: str) -> Any:
    return pytest.mark.parametrize("way", [pytest.param(WAYS[name], id=name) for name in names or WAYS])


def record(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "mha2gqa.json").read_text())


def given(way: tuple[object, ...]) -> dict[str, object]:
    """The options of a way by their names."""
    return {str(name)[2:]: value for name, value in zip(way[::2], way[1::2], strict=True)}


@ways()
def test_a_way_converts(source: Path, cli: Any, load: Any, tmp_path: Path, way: tuple[object, ...]) -> None:
    answer = cli("convert", source, "-g", 2, "-o", "out", "--json", *way)
    assert answer.code == 0, answer.err
    report = json.loads(answer.out)
    assert {path.name for path in tmp_path.iterdir()} == {"source", "text.txt", "out"}
    assert {one["name"] for one in report["tensors"] if one["action"] == "changed"} == ATTENTION
    assert load(tmp_path / "out").config.num_key_value_heads == 2
    verified = cli("verify", "out", "--level", "file", "--json")
    assert verified.code == 0, verified.out
    level = json.loads(verified.out)["file"]
    is_read = given(way).get("data", "none") != "none"
    counts = (len(ATTENTION), 0) if is_read else (0, len(ATTENTION))  # without text it is made again
    assert (level["checksummed"], level["recomputed"], level["findings"]) == (*counts, [])


@ways()
def test_the_record_and_the_card_say_how(source: Path, cli: Any, tmp_path: Path, way: tuple[object, ...]) -> None:
    report = json.loads(cli("convert", source, "-g", 2, "-o", "out", "--json", *way).out)
    written, options = record(tmp_path / "out"), given(way)
    recorded = {name: value for name, value in written["options"].items() if name in options}
    assert recorded == {name: [value] if name == "data" else value for name, value in options.items()}
    assert [layer["module"] for layer in written["layers"]] == MODULES
    for layer in written["layers"]:
        assert sorted(head for group in layer["groups"] for head in group) == [0, 1, 2, 3]
        assert [len(group) for group in layer["groups"]] == [2, 2]
        assert written["groups"][layer["module"]] == layer["groups"]
    if "auto" not in way:
        wanted = STEPS[str(options.get("refine"))]
        assert [list(layer["errors"]) for layer in written["layers"]] == [wanted, wanted]
    assert report["layers"] == written["layers"]
    assert report["divergence"] == written["divergence"]
    if "auto" not in way:
        assert (written["divergence"] is not None) == ("joint" in way)
    data = options.get("data")
    assert (written["text"] is None) == (data in (None, "none"))
    assert (data == "text.txt") == (written["text"] == "text from text.txt")
    card = (tmp_path / "out/README.md").read_text()
    assert all(f"--{name} {value}" in card for name, value in options.items())


@pytest.mark.parametrize(("rate", "says"), [(0.04, " -> "), (1e6, "nothing gained, and taken back")])
def test_what_training_together_gained_is_said(
    source: Path, cli: Any, monkeypatch: pytest.MonkeyPatch, rate: float, says: str
) -> None:
    monkeypatch.setattr("mha2gqa.refine.joint.RATE", rate)
    told = cli("convert", source, "-g", 2, "-o", "out", *WAYS["joint"]).out
    line = next(line for line in told.splitlines() if line.startswith("error joint"))
    assert says in line and (says == " -> ") == (" -> " in line)


@ways("aligned", "similar", "statistics", "distil", "joint")
def test_one_flipped_bit_is_found(source: Path, cli: Any, tmp_path: Path, way: tuple[object, ...]) -> None:
    assert cli("convert", source, "-g", 2, "-o", "out", *way).code == 0
    guilty = "model.layers.1.self_attn.q_proj.weight"
    flip_bit(tmp_path / "out", guilty, byte=5)
    answer = cli("verify", "out", "--level", "file", "--json")
    assert answer.code == 3
    assert [one["guilty"] for one in json.loads(answer.out)["file"]["findings"]] == [guilty]


@ways()
def test_a_dry_run_reads_no_text_and_needs_no_disk(
    source: Path, cli: Any, tree: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: tuple[object, ...]
) -> None:
    (tmp_path / "text.txt").unlink()
    (source / "tokenizer.json").unlink()
    usage = shutil.disk_usage("/")._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    before = tree(tmp_path)
    answer = cli("convert", source, "-g", 2, "-o", "out", "--dry-run", "--json", *way)
    assert answer.code == 0, answer.err
    report = json.loads(answer.out)
    shapes = {one["name"]: (one["before"], one["after"]) for one in report["tensors"] if one["action"] == "changed"}
    assert shapes.keys() == ATTENTION
    for name, (old, new) in shapes.items():
        assert (old, new) == ([64, 64], [32, 64] if ".k_proj" in name or ".v_proj" in name else [64, 64])
    assert (report["written"], report["layers"], report["text"]) == (False, [], None)
    assert tree(tmp_path) == before


@ways("similar", "own text", "distil", "joint", "auto")
def test_the_same_seed_gives_the_same_bytes(source: Path, cli: Any, tmp_path: Path, way: tuple[object, ...]) -> None:
    first = converted(cli, source, "one", *way)
    assert converted(cli, source, "two", *way) == first
    small = converted(cli, source, "three", *way, "--activation-memory", "1KB")
    assert small == first
    assert {path.name for path in tmp_path.iterdir()} == {"source", "text.txt", "one", "two", "three"}


def converted(cli: Any, source: Path, output: str, *way: object) -> bytes:
    answer = cli("convert", source, "-g", 2, "-o", output, *way)
    assert answer.code == 0, answer.err
    return (source.parent / output / "model.safetensors").read_bytes()


@ways("aligned", "distil", "auto")
def test_as_many_groups_as_heads_change_nothing(
    source: Path, cli: Any, tmp_path: Path, way: tuple[object, ...]
) -> None:
    answer = cli("convert", source, "-g", 4, "-o", "out", "--json", *way)
    assert answer.code == 0, answer.err
    assert (tmp_path / "out/model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    assert json.loads(answer.out)["layers"] == []


def test_auto_stops_at_the_first_way_that_is_good_enough(source: Path, cli: Any, tmp_path: Path) -> None:
    request = ("convert", source, "-g", 2, "--json", "--data", "text.txt", "--steps", 3, "--method", "auto")
    easy = json.loads(cli(*request, "-o", "easy", "--max-ppl-increase", 1000).out)
    assert [trial["refine"] for trial in easy["trials"]] == [None]
    hard = json.loads(cli(*request, "-o", "hard", "--max-ppl-increase", 0).out)
    tried = [trial["refine"] for trial in hard["trials"]]
    assert tried == [None, "refit", "distil", "joint"][: len(tried)]
    best = min(hard["trials"], key=lambda trial: trial["loss"])
    assert best["increase"] <= 0 or len(tried) == 4
    assert record(tmp_path / "hard")["trials"] == hard["trials"]


def test_the_report_for_people(source: Path, cli: Any) -> None:
    answer = cli("convert", source, "-g", 2, "-o", "out", *WAYS["distil"])
    for part in (
        "4 -> 2, aligned, distil",
        "text from text.txt",
        "error merged",
        "error refit",
        "error distil",
        "8 changed",
    ):
        assert part in answer.out
    assert "4 -> 2 KV heads, aligned, distil" in cli("verify", "out", "--level", "file").out
    assert "layer 1/2 model.layers.0.self_attn: error merged" in answer.err
    assert "layer 2/2 model.layers.1.self_attn: error merged" in answer.err


@pytest.mark.parametrize("refine", [(), ("--refine", "refit")])
def test_text_that_leaves_moments_singular_is_named(source: Path, cli: Any, refine: tuple[str, ...]) -> None:
    said = "; 32 tokens cannot tell all of a layer's 64 inputs apart: the others count as even"
    for tokens, expected in ((32, said), (64, "")):
        options = ("--context", 2, "--tokens", tokens, "--force", *refine)
        answer = cli("convert", source, "-g", 2, "-o", "out", *TEXT, *options, "--json")
        assert answer.code == 0, answer.err
        assert json.loads(answer.out)["text"] == record(Path("out"))["text"] == f"text from text.txt{expected}"


RECIPE = Path(__file__).parents[3] / "configs/convert/aligned-distil.yaml"


def test_the_recipe(source: Path, cli: Any, tmp_path: Path) -> None:
    short = ("--groups", 2, "--tokens", 512, "--steps", 3, "--output", "out")
    answer = cli("convert", source, "--config", RECIPE, *short)
    assert answer.code == 0, answer.err
    content, options = yaml.safe_load(RECIPE.read_text()), record(tmp_path / "out")["options"]
    for name in ("method", "grouping", "refine", "data"):
        assert options[name] == content[name]
    assert (options["groups"], options["tokens"], options["steps"]) == (2, 512, 3)


def test_the_reference_brings_its_own_text(cli: Any, tmp_path: Path) -> None:
    request = ("--method", "aligned", "--tokens", 2048, "--context", 128)
    answer = cli("convert", "-g", 4, "-o", "out", "--refine", "refit", *request)
    assert answer.code == 0, answer.err
    written = record(tmp_path / "out")
    assert written["text"].startswith("calibration text of the reference checkpoint")
    assert "data" not in written["options"]
    for layer in written["layers"]:
        assert layer["errors"]["refit"] <= layer["errors"]["merged"] < 1


def test_a_layer_that_training_makes_worse_is_trained_with_smaller_steps(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = []

    def watched(module: Any, names: Any, examples: Any, options: Descent, device: Any) -> None:
        rates.append(options.rate)
        if len(rates) == 1:
            module.v_proj.weight.data.mul_(100)
        else:
            distil(module, names, examples, options, device)

    monkeypatch.setattr(refine, "distil", watched)
    text, output = (str(tmp_path / "text.txt"),), tmp_path / "out"
    convert(ConvertOptions(model=str(source), groups=1, refine="distil", data=text, steps=100, output=output))
    assert rates[:2] == pytest.approx([0.1, 0.03])
    errors = record(output)["layers"][0]["errors"]
    assert errors["distil"] < errors["refit"]


@pytest.mark.parametrize(
    ("blocks", "context", "number", "size"),
    [
        *((3, 32, 3, 1), (100, 32, 8, 12), (64, 512, 64, 1), (1000, 32, 62, 16)),
        *((512, 512, 256, 2), (2048, 512, 256, 8), (9, 8192, 9, 1)),
    ],
)
def test_a_step_reads_more_of_longer_text(blocks: int, context: int, number: int, size: int) -> None:
    cut = batches(torch.zeros(blocks, context), whole=True)
    assert [len(batch) for batch in cut] == [size] * number
