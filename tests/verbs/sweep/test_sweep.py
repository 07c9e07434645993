"""`sweep` at the command line: its numbers are verify's, it goes on where it was interrupted, it says what to take."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mha2gqa.texts.find import find_blocks
from mha2gqa.verbs.sweep import steps
from mha2gqa.verbs.sweep.measuring import Yardstick
from tests.conftest import Run
from tests.verbs.verify.subjects import save_source, save_text

Cli = Callable[..., Run]
SMALL = ("--data", "text.txt", "--context", 24, "--tokens", 600, "--eval-tokens", 240, "--sensitivity")
NAMES = {"source-gqa2-mean", "source-gqa2-aligned", "source-mqa-mean", "source-mqa-aligned"}
MODULES = ["model.layers.0.self_attn", "model.layers.1.self_attn"]


@pytest.fixture(scope="module")
def _source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_source(tmp_path_factory.mktemp("sweep") / "source")


@pytest.fixture
def source(_source: Path, tmp_path: Path) -> Path:
    save_text(tmp_path / "text.txt", 2000)
    return Path(shutil.copytree(_source, tmp_path / "source"))


def swept(cli: Cli, source: Path, *arguments: object) -> dict[str, Any]:
    answer = cli("sweep", source.name, *SMALL, "--json", *arguments)
    assert answer.code == 0, answer.err
    report: dict[str, Any] = json.loads(answer.out)
    return report


def without_seconds(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in point.items() if name != "seconds"} for point in points]


def test_the_numbers_are_those_of_verify(cli: Cli, source: Path, tmp_path: Path) -> None:
    report = swept(cli, source, "--refine", "none,refit", "--keep", "kept", "--seed", 5)
    assert {point["name"] for point in report["points"]} == NAMES | {f"{name}-refit" for name in NAMES}
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {point["name"] for point in report["points"]}
    evaluation = "source-sweep-text/evaluation.jsonl"
    for point in report["points"]:
        options = ("--data", evaluation, "--tokens", 240, "--context", 24, "--seed", 5)
        found = json.loads(cli("verify", f"kept/{point['name']}", "--level", "outputs", "--json", *options).out)[
            "outputs"
        ]
        loss = point["measured"]["loss"]
        assert loss == {name: found["loss"][name] for name in loss}
        assert loss["interval"] is not None
        assert (point["measured"]["kl"], point["measured"]["top1"]) == (found["kl"]["mean"], found["top1"])
        assert report["text"] == found["text"]


def test_the_command_of_a_point_makes_the_same_checkpoint(cli: Cli, source: Path, tensors: Any, tmp_path: Path) -> None:
    report = swept(cli, source, "-g", 2, "--methods", "aligned", "--refine", "refit", "--keep", "kept")
    words = report["points"][0]["command"].split()
    assert words[:2] == ["mha2gqa", "convert"]
    assert cli(*words[1:], "-o", "again").code == 0
    kept, again = tensors(tmp_path / "kept/source-gqa2-aligned-refit"), tensors(tmp_path / "again")
    assert all(torch.equal(kept[name], again[name]) for name in kept | again)


def test_nothing_stays_but_the_results_and_the_text(cli: Cli, source: Path, tmp_path: Path) -> None:
    report = swept(cli, source)
    assert {path.name for path in tmp_path.iterdir()} == {
        "source",
        "text.txt",
        "source-sweep.json",
        "source-sweep-text",
    }
    assert report == json.loads((tmp_path / "source-sweep.json").read_text())
    assert {point["name"] for point in report["points"]} == NAMES
    assert {(one["method"], one["groups"], one["module"]) for one in report["layers"]} == {
        (method, 1, module) for method in ("mean", "aligned") for module in MODULES
    }
    caches = {point["groups"]: point["cache"] for point in report["points"]}
    assert {4: report["cache"], **caches} == {4: 2 * 2 * 4 * 16 * 4, 2: 2 * 2 * 2 * 16 * 4, 1: 2 * 2 * 1 * 16 * 4}


def test_it_says_first_how_much_there_is_to_do(cli: Cli, source: Path) -> None:
    small = (*SMALL[:-1], "--no-sensitivity")
    kept = "Each is kept in source-sweep.json as soon as it is there"
    assert f"2 to convert and measure. {kept}" in cli("sweep", source.name, *small, "-g", 2).err
    assert f"2 to convert and measure (2 conversions are known). {kept}" in cli("sweep", source.name, *small).err
    assert "Each is kept" not in cli("sweep", source.name, *small).err
    told = cli("sweep", source.name, *SMALL).err
    assert f"the single layers of 2 methods (4 conversions are known). {kept}" in told


def test_what_is_learned_from_is_not_evaluated_on(cli: Cli, source: Path, tmp_path: Path) -> None:
    swept(cli, source, "-g", 2)
    parts = {
        name: [json.loads(line)["text"] for line in (tmp_path / f"source-sweep-text/{name}.jsonl").open()]
        for name in ("calibration", "evaluation")
    }
    whole = (tmp_path / "text.txt").read_text()
    assert "".join(parts["evaluation"] + parts["calibration"]) == whole
    assert 0.15 < len("".join(parts["evaluation"])) / len(whole) < 0.4


def test_the_model_does_not_write_the_evaluation_text_twice(cli: Cli, source: Path, monkeypatch: Any) -> None:
    texts: dict[str, torch.Tensor] = {}

    def keep(*data: Any, purpose: Any, **options: Any) -> Any:
        found = find_blocks(*data, purpose=purpose, **options)
        texts[purpose] = found.tokens_NT
        return found

    for module in ("verify.outputs_level", "convert.reading"):
        monkeypatch.setattr(f"mha2gqa.verbs.{module}.find_blocks", keep)
    arguments = ("--data", "self", "--context", 24, "--tokens", 240, "--eval-tokens", 240, "-g", 2, "--no-sensitivity")
    assert cli("sweep", "source", *arguments).code == 0
    same = (texts["evaluation"][:, None] == texts["calibration"][None]).all(-1)
    assert texts["evaluation"].shape == (10, 24)
    assert not same.any()


def interrupt(monkeypatch: Any, at: int) -> list[str]:
    """Make the conversion of this number end as Ctrl-C would end it; return the names of what is converted."""
    made: list[str] = []
    own = steps.convert

    def convert(options: Any, *progress: Any) -> Any:
        if not options.dry_run:
            made.append(options.output.name)
            if len(made) == at:
                raise KeyboardInterrupt
        return own(options, *progress)

    monkeypatch.setattr(steps, "convert", convert)
    return made


def test_an_interrupted_sweep_goes_on(cli: Cli, source: Path, monkeypatch: Any, tmp_path: Path) -> None:
    with monkeypatch.context() as patched:
        made = interrupt(patched, 4)
        answer = cli("sweep", source.name, *SMALL)
    assert (answer.code, len(made)) == (130, 4)
    assert "What was finished stays in source-sweep.json, and the same command goes on" in answer.err
    assert len(json.loads((tmp_path / "source-sweep.json").read_text())["points"]) == 3
    rest = interrupt(monkeypatch, 99)
    resumed = swept(cli, source)
    assert rest == ["source-mqa-aligned", "source-mqa-mean", "source-mqa-aligned"]  # the last two for single layers
    whole = swept(cli, source, "-o", "other.json")
    assert without_seconds(resumed["points"]) == without_seconds(
        json.loads(json.dumps(whole["points"]).replace("other-text", "source-sweep-text"))
    )
    assert resumed["layers"] == whole["layers"]


def test_of_an_interrupted_sweep_no_single_layer_is_measured_again(
    cli: Cli, source: Path, monkeypatch: Any, tmp_path: Path
) -> None:
    own, calls, few = Yardstick.measure, list[bool](), ("-g", "2", "--methods", "mean,aligned")

    def measure(*arguments: Any) -> Any:
        calls.append(True)
        if len(calls) == 4:  # two points, and the first of two layers, come before
            raise KeyboardInterrupt
        return own(*arguments)

    monkeypatch.setattr(Yardstick, "measure", measure)
    answer = cli("sweep", source.name, *SMALL, *few)
    assert (answer.code, len(calls)) == (130, 4)
    assert "What was finished stays in source-sweep.json, and the same command goes on" in answer.err
    written = json.loads((tmp_path / "source-sweep.json").read_text())["layers"]
    assert [(one["method"], one["module"]) for one in written] == [("mean", MODULES[0])]
    resumed = swept(cli, source, *few)
    assert len(calls) == 4 + 3
    whole = swept(cli, source, *few, "-o", "other.json")
    assert resumed["layers"] == whole["layers"]
    assert [(one["method"], one["module"]) for one in whole["layers"]] == [
        (method, module) for method in ("mean", "aligned") for module in MODULES
    ]


def test_a_second_sweep_adds_to_the_first_and_measures_nothing_again(cli: Cli, source: Path, monkeypatch: Any) -> None:
    first = swept(cli, source, "-g", "2", "--methods", "mean")
    made = interrupt(monkeypatch, 99)
    assert swept(cli, source, "-g", "2", "--methods", "mean") == first
    assert not made
    both = swept(cli, source, "-g", "2", "--methods", "aligned", "--no-sensitivity")
    assert made == ["source-gqa2-aligned"]
    assert [point["name"] for point in both["points"]] == ["source-gqa2-mean", "source-gqa2-aligned"]
    assert both["points"][:1] == first["points"]


def test_results_of_other_settings_are_not_mixed(cli: Cli, source: Path, refuse: Any) -> None:
    few = ("--methods", "mean", "--no-sensitivity")
    swept(cli, source, "-g", 2, *few)
    refuse(
        *("sweep", "source", *SMALL, "-g", 1, *few, "--seed", 1),
        says=("source-sweep.json", "seed was 0 and is 1", "--force"),
    )
    other = swept(cli, source, "-g", 1, *few, "--seed", 1, "--force")
    assert [point["name"] for point in other["points"]] == ["source-mqa-mean"]
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes())
    refuse(*("sweep", "source", *SMALL, "-g", 1, *few, "--seed", 1), says=("files have changed", "-o"))


def test_the_recommendation_follows_the_limit(cli: Cli, source: Path) -> None:
    asked = ("sweep", "source", "--eval-data", "self", "--context", 24, "--eval-tokens", 2400, "--no-sensitivity")
    points = json.loads(cli(*asked, "--json").out)["points"]
    increases = {point["groups"]: point["measured"]["loss"]["increase"] for point in points}
    least = min(increases.values())
    assert least > 0, "what a model writes suits no other better"
    none = cli(*asked, "--max-ppl-increase", least * 0.9)
    assert "No conversion keeps the perplexity within" in none.out
    assert "mha2gqa convert" not in none.out
    every = cli(*asked, "--max-ppl-increase", max(increases.values()))
    assert "Take G = 1 by" in every.out
    assert "    mha2gqa convert source --groups 1" in every.out


def test_the_page_is_written(cli: Cli, source: Path, tmp_path: Path) -> None:
    swept(cli, source, "-g", 2, "--report", "page")
    page = (tmp_path / "page/report.html").read_text()
    assert "mha2gqa sweep" in page
    assert page.count("<svg") == 2


def test_a_latent_is_one_more_way(cli: Cli, source: Path) -> None:
    report = swept(cli, source, "-g", 1, "--methods", "latent,mean")
    latent, mean = (next(one for one in report["points"] if one["method"] == name) for name in ("latent", "mean"))
    assert (report["heads"], report["model_type"]) == (4, "llama")
    assert (latent["name"], latent["cache"]) == ("source-like1-latent", mean["cache"])
    assert latent["command"].startswith("mha2gqa convert source --latent-like-groups 1 ")
    assert latent["measured"]["loss"]["converted"] != mean["measured"]["loss"]["converted"]
    assert {layer["method"] for layer in report["layers"]} == {"mean"}


def test_windows_and_heads_by_layer_are_on_the_same_frontier(cli: Cli, source: Path) -> None:
    """Each alone and both together; the bytes are those of a text as long as is evaluated on, 24 tokens."""
    asked = ("-g", 2, "--methods", "mean,aligned", "--window", 8, "--cache", "50%", "--no-sensitivity")
    points = {one["name"]: one for one in swept(cli, source, *asked)["points"]}
    whole = 2 * 2 * 4 * 16 * 4
    both = points.pop("source-w8-auto50-aligned")
    assert "--window 8" in both["command"] and "--cache 0.5" in both["command"]
    shares = {name.removeprefix("source-"): one["cache"] / whole for name, one in points.items()}
    assert shares == pytest.approx(
        {
            "gqa2-mean": 1 / 2,
            "gqa2-aligned": 1 / 2,
            "auto50-aligned": 1 / 2,
            "w8": 1 / 3,
            "w8-gqa2-mean": 1 / 6,
            "w8-gqa2-aligned": 1 / 6,
        },
        abs=1e-3,
    )
    alone, layered = points["source-w8"], points["source-auto50-aligned"]
    assert (alone["groups"], alone["method"], alone["window"]) == (4, "", "8")
    assert alone["command"] == "mha2gqa convert source --window 8"
    heads = layered["by_layer"] or f"{layered['groups']},{layered['groups']}"  # text may choose the same for both
    assert sum(map(int, heads.split(","))) == 4 and (layered["groups"] is None) == bool(layered["by_layer"])
    assert "--groups auto" in layered["command"] and "--cache 0.5" in layered["command"]
    again = swept(cli, source, *asked, "--window", "16")
    assert {"source-w8", "source-w16"} <= {one["name"] for one in again["points"]}
    answer = cli("sweep", source.name, *SMALL, *asked)
    assert "window 8" in answer.out


def test_heads_by_layer_need_a_method_that_reads_text(source: Path, refuse: Any) -> None:
    refuse(
        *("sweep", "source", *SMALL, "-g", 2, "--methods", "mean", "--cache", "50%"),
        says=("reads the text by which --cache chooses", "--methods aligned"),
    )
