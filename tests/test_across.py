"""The commands one after another, on models whose class changes or ships: each reads what the one before has written.

Tiny random models with the reference's tokenizer, all in this process but the last load, which has no mha2gqa.

    gpt_neox   becomes transformers' own Phi
    gpt2       becomes a class that ships beside the weights
    t5, bert   become such classes too, and have no next token to train on: refused before anything is written
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
import transformers

from mha2gqa import (
    BenchOptions,
    ConvertOptions,
    ExpandOptions,
    SweepOptions,
    UptrainOptions,
    VerifyOptions,
    bench,
    convert,
    expand,
    sweep,
    uptrain,
    verify,
)
from mha2gqa.errors import CalibrationError, FamilyError, Mha2GqaError, SweepError, TrainingError
from mha2gqa.files.source import reference_directory
from mha2gqa.model.load import load_model
from mha2gqa.shipped import files
from tests.families.tiny import tiny_config, tiny_model

CLASSES = {"gpt_neox": ("phi", "PhiForCausalLM"), "gpt2": ("gpt2_gqa", "GPT2GQALMHeadModel")}
QUICK: dict[str, Any] = {"use_cpu": True, "per_device_train_batch_size": 2, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(f"The {n} cats sat on {n + 1} mats, and {n * n} dogs ran home." for n in range(150)))
    return str(path)


def save(folder: Path, model_type: str, class_name: str | None = None) -> Path:
    """Write a tiny checkpoint of a model type, with a tokenizer that fits it."""
    config = tiny_config(model_type, vocab_size=2048)
    torch.manual_seed(0)
    model = getattr(transformers, class_name)(config) if class_name else tiny_model(config)
    model.save_pretrained(folder / model_type)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(reference_directory() / name, folder / model_type)
    return folder / model_type


def converted(source: Path, groups: int, name: str = "converted", **more: Any) -> Path:
    convert(ConvertOptions(model=str(source), output=source.parent / name, groups=groups, **more))
    return source.parent / name


def uptrained(directory: Path, text: str, name: str = "uptrained", **more: Any) -> Path:
    """Train for three steps; the weights must have moved."""
    output = directory.parent / name
    asked: dict[str, Any] = {
        "data": (text,),
        "held_out": (text,),
        "context": 32,
        "held_out_tokens": 256,
        "steps": 3,
        "keep": "last",
    }
    report = uptrain(UptrainOptions(converted=directory, output=output, trainer=QUICK, **asked | more))
    assert report is not None
    assert report.step == 3
    assert report.changed > 0
    return output


def verdict(directory: Path, text: str, **more: Any) -> str:
    return verify(VerifyOptions(converted=directory, data=(text,), tokens=256, context=32, **more)).verdict


def logits(directory: Path) -> torch.Tensor:
    with torch.no_grad():
        answer: torch.Tensor = load_model(directory)(torch.arange(5, 37)[None]).logits
    return answer


@pytest.fixture(scope="module", params=CLASSES)
def chain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, text: str) -> dict[str, Path]:
    """Convert to two KV heads, train the result, expand and convert what was trained; by what was done."""
    source = save(tmp_path_factory.mktemp(request.param), request.param)
    two = converted(source, 2)
    trained = uptrained(two, text)
    wide = two.parent / "expanded"
    expand(ExpandOptions(model=str(trained), output=wide))
    return {"source": source, "two": two, "trained": trained, "wide": wide, "one": converted(trained, 1, "one")}


def test_every_result_is_of_the_class_that_the_conversion_chose(chain: dict[str, Path]) -> None:
    kind, name = CLASSES[chain["source"].name]
    for step, heads in {"two": 2, "trained": 2, "wide": 4, "one": 1}.items():
        config = json.loads((chain[step] / "config.json").read_text())
        assert (config["model_type"], config["architectures"]) == (kind, [name])
        assert config["num_key_value_heads"] == heads
        assert {path.name: path.read_text() for path in chain[step].glob("*.py")} == (
            files(kind) if kind.endswith("_gqa") else {}
        )


def test_expanding_what_was_trained_keeps_its_logits(chain: dict[str, Path]) -> None:
    trained = logits(chain["trained"])
    torch.testing.assert_close(logits(chain["wide"]), trained, rtol=1e-5, atol=1e-5)
    assert (logits(chain["two"]) - trained).abs().max() > 1e-3


def test_each_step_verifies_against_the_one_it_came_from(chain: dict[str, Path], text: str, tmp_path: Path) -> None:
    assert verdict(chain["wide"], text) == "identical"
    loose = {"max_ppl_increase": 1e9, "max_kl": 1e9, "min_top1": 0.0}
    assert verdict(chain["trained"], text, report=tmp_path / "page", **loose) == "within limits"
    assert (tmp_path / "page" / "report.html").stat().st_size > 1000
    assert verdict(chain["one"], text, **loose) == "within limits"


@pytest.mark.parametrize("step", ["trained", "wide", "one"])
def test_what_another_command_wrote_trains(chain: dict[str, Path], text: str, step: str, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(chain[step], tmp_path / step))
    before = chain["source" if step == "trained" else "trained"]
    # an expansion gives its original's distributions exactly: only the text can teach it more
    trained = uptrained(copied, text, against=str(before), objective="lm" if step == "wide" else "distil")
    assert trained.joinpath("mha2gqa.json").is_file()
    assert (logits(trained) - logits(chain[step])).abs().max() > 1e-4


def test_speed_is_measured_of_what_was_trained(chain: dict[str, Path]) -> None:
    report = bench(
        BenchOptions(converted=chain["trained"], batch=(1,), context=(16,), cache=("dynamic",), tokens=2, turns=2)
    )
    assert report.original.kv_heads == 4
    assert report.converted.kv_heads == 2


@pytest.mark.parametrize(("step", "heads"), [("source", 4), ("two", 2)])
def test_sweep_measures_single_layers(chain: dict[str, Path], text: str, step: str, heads: int, tmp_path: Path) -> None:
    found = _sweep(chain[step], text, tmp_path)
    assert found.heads == heads
    assert len(found.layers) == 2


def _sweep(source: Path, text: str, folder: Path) -> Any:
    size = {"tokens": 512, "eval_tokens": 256, "context": 32, "sensitivity": True}
    return sweep(
        SweepOptions(
            model=str(source), groups=(1,), methods=("mean",), data=(text,), output=folder / "sweep.json", **size
        )
    )


def test_what_ships_loads_after_training_without_this_package(tmp_path: Path, text: str) -> None:
    """Twice trained, in a process where `import mha2gqa` fails: the same class, the same logits."""
    two = converted(save(tmp_path, "gpt2"), 2)
    twice = uptrained(uptrained(two, text, "once"), text, "twice")
    script = (
        "import sys; sys.modules['mha2gqa'] = None\n"
        "import torch; from transformers import AutoModelForCausalLM\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(twice)!r}, trust_remote_code=True).eval()\n"
        "assert type(model).__module__.startswith('transformers_modules.')\n"
        "with torch.no_grad(): torch.save(model(torch.arange(5, 37)[None]).logits, 'logits.pt')\n"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True, capture_output=True)
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), logits(twice), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model_type", ["gpt_neox", "gpt2", "t5"])
@pytest.mark.parametrize("how", [{"refine": "distil"}, {"refine": "joint"}, {"method": "auto"}, {"method": "aligned"}])
def test_text_improves_a_class_that_changes(model_type: str, how: dict[str, Any], text: str, tmp_path: Path) -> None:
    source = save(tmp_path, model_type)
    steps = {} if how == {"method": "aligned"} else {"steps": 3}
    plain = _tensors(converted(source, 2, "plain"))
    better = _tensors(converted(source, 2, "better", data=(text,), tokens=512, context=32, **how, **steps))
    assert plain.keys() == better.keys()
    assert any(not torch.equal(plain[name], better[name]) for name in plain)


def _tensors(directory: Path) -> dict[str, torch.Tensor]:
    return dict(load_model(directory).state_dict())


@pytest.mark.parametrize(("model_type", "class_name"), [("t5", None), ("bert", "BertForMaskedLM")])
def test_encoders_and_their_decoders_verify_and_expand(
    model_type: str, class_name: str | None, text: str, tmp_path: Path
) -> None:
    aligned = {"method": "aligned", "data": (text,), "tokens": 512, "context": 32}
    two = converted(save(tmp_path, model_type, class_name), 2, **aligned)
    assert verdict(two, text, max_ppl_increase=1e9, max_kl=1e9, min_top1=0.0) == "within limits"
    expand(ExpandOptions(model=str(two), output=tmp_path / "wide"))
    assert verdict(tmp_path / "wide", text) == "identical"


REFUSED = [
    ("bert", "BertForMaskedLM", "no next token"),
    ("bert", "BertLMHeadModel", "no next token"),  # not built as a decoder: it sees what it predicts
]


@pytest.mark.parametrize(("model_type", "class_name", "says"), REFUSED)
@pytest.mark.parametrize("objective", [None, "lm"])
def test_training_needs_a_next_token(
    model_type: str, class_name: str | None, says: str, objective: Any, text: str, tmp_path: Path
) -> None:
    two = converted(save(tmp_path, model_type, class_name), 2)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(TrainingError, match=says):
        uptrained(two, text, objective=objective)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("class_name", "says"), [("BertForMaskedLM", "masked tokens"), ("BertLMHeadModel", "sees the tokens")]
)
def test_an_encoder_has_no_loss_to_sweep_or_to_choose_by(class_name: str, says: str, text: str, tmp_path: Path) -> None:
    source = save(tmp_path, "bert", class_name)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SweepError, match=says):
        _sweep(source, text, tmp_path)
    with pytest.raises(CalibrationError, match="no next token to predict"):
        converted(source, 2, method="auto", data=(text,), tokens=512, context=32)
    assert sorted(tmp_path.rglob("*")) == before


def test_sweep_reads_an_encoder_decoder_as_verify_does(text: str, tmp_path: Path) -> None:
    assert len(_sweep(save(tmp_path, "t5"), text, tmp_path).points) == 1


def test_speed_needs_text_written_token_by_token(tmp_path: Path) -> None:
    two = converted(save(tmp_path, "bert", "BertForMaskedLM"), 2)
    with pytest.raises(Mha2GqaError, match="does not write text token by token"):
        bench(BenchOptions(converted=two, batch=(1,), context=(16,)))


def test_a_latent_goes_through_every_command(text: str, tmp_path: Path) -> None:
    source = save(tmp_path, "llama")
    options = ConvertOptions(
        model=str(source), output=tmp_path / "latent", latent=24, rope_width=8, data=(text,), context=32, tokens=2048
    )
    convert(options)
    trained = uptrained(tmp_path / "latent", text)
    assert (logits(trained) - logits(tmp_path / "latent")).abs().max() > 1e-4
    assert verdict(trained, text, max_ppl_increase=1e6, max_kl=100, min_top1=0) == "within limits"
    quick: dict[str, Any] = {"batch": (1,), "context": (16,), "cache": ("dynamic",), "tokens": 2, "turns": 2}
    report = bench(BenchOptions(converted=trained, **quick))
    assert (report.original.cache_per_token, report.converted.cache_per_token) == (2 * 128 * 4, 2 * 32 * 4)
    assert report.decode[0].cache_measured[0] == 4 * report.decode[0].cache_measured[1]
    for again in (
        lambda: expand(ExpandOptions(model=str(trained), output=tmp_path / "wide")),
        lambda: convert(ConvertOptions(model=str(trained), output=tmp_path / "one", groups=1)),
        lambda: convert(replace(options, model=str(trained), output=tmp_path / "again")),
    ):
        with pytest.raises(FamilyError, match="latent"):
            again()
