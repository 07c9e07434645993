"""What conversions with text refuse, at the command line: exit code 1, one message on stderr, nothing left behind."""

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from mha2gqa.refine import refine
from tests.families.tiny import save_tiny
from tests.verbs.verify.subjects import save_source, save_text, save_tokenizer

TEXT = ("--data", "text.txt", "--steps", 2)


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Tiny checkpoints with a tokenizer, made once."""
    made: dict[str, Path] = {}

    def make(model_type: str, **overrides: Any) -> Path:
        key = f"{model_type} {overrides}"
        if key not in made:
            made[key] = tmp_path_factory.mktemp(model_type) / "source"
            save_source(made[key], model_type, **overrides)
        return made[key]

    return make


@pytest.fixture
def source(sources: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    def make(model_type: str = "llama", **overrides: Any) -> Path:
        save_text(tmp_path / "text.txt", 2000)
        return Path(shutil.copytree(sources(model_type, **overrides), tmp_path / "source"))

    return make


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--data", "text.txt"), ("--method mean makes no use of --data", "Expected --method aligned", "--refine")),
        (
            ("--method", "auto", "--refine", "refit", *TEXT),
            ("--method auto chooses how far to refine", "Leave out --refine"),
        ),
        (
            ("--method", "aligned", "--refine", "distil"),
            ("--refine distil needs calibration text, and none", "Expected --data", "--data self"),
        ),
        (("--method", "auto"), ("--method auto needs calibration text", "Expected --data", "--data self")),
        (
            ("--method", "aligned", *TEXT, "--activation-memory", "lots"),
            ("--activation-memory lots is no size", "Expected a number with a unit"),
        ),
        (
            ("--method", "aligned", *TEXT, "--activation-memory", "0GB"),
            ("--activation-memory 0GB is no size", "such as 5GB"),
        ),
        (
            ("--method", "aligned", "--refine", "refit", *TEXT, "--context", 65),
            ("--context 65 does not fit the model", "Expected 2 to 64 tokens"),
        ),
        (
            ("--method", "aligned", "--data", "short.txt"),
            ("The text is 101 tokens long", "Expected at least 512: 8 blocks of 64", "--data"),
        ),
        (
            ("--refine", "distil", "--data", "short.txt", "--data", "short.txt"),
            ("The text is 202 tokens long", "Expected at least 512: 8 blocks of 64", "--data"),
        ),
        (("--refine", "refit", "--data", "absent.txt"), ("There is no file 'absent.txt'", "Expected a text")),
        (("--refine", "refit", "--data", "self", "--data", "text.txt"), ("--data self stands beside other text",)),
        (("--method", "aligned", *TEXT, "--device", "abacus"), ("There is no device 'abacus'", "cpu")),
    ],
    ids=lambda value: " ".join(map(str, value))[:60] if isinstance(value, tuple) and value[0][0] == "-" else "",
)
def test_request(source: Any, refuse: Any, tmp_path: Path, options: Any, says: tuple[str, ...]) -> None:
    save_text(tmp_path / "short.txt", 100)
    refuse("convert", source(), "-g", 2, "-o", "new/out", *options, says=says)


@pytest.mark.parametrize("dry_run", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    ("model_type", "overrides", "options", "says"),
    [
        (
            "falcon",
            {"alibi": True},
            ("--grouping", "similar"),
            ("KV heads of this 'falcon' model cannot change places", "--grouping similar", "Leave out --grouping"),
        ),
        (
            "cohere",
            {"use_qk_norm": True},
            ("--method", "aligned", "--grouping", "similar"),
            ("KV heads of this 'cohere' model cannot change places", "Leave out --grouping"),
        ),
        (
            "canary",
            {},
            ("--method", "aligned", *TEXT),
            ("A 'canary' model cannot be run on text alone: it reads input_features", "--method aligned"),
        ),
    ],
)
def test_a_family_that_forbids_it(
    source: Any, refuse: Any, model_type: str, overrides: Any, options: Any, says: tuple[str, ...], dry_run: Any
) -> None:
    refuse("convert", source(model_type, **overrides), "-g", 1, "-o", "out", *options, *dry_run, says=says)


@pytest.mark.parametrize(
    ("model_type", "options", "says"),
    [
        ("dia", ("--refine", "refit", *TEXT), ("A 'dia' model cannot be run on text alone: it fails on token ids",)),
        (
            "eurobert",
            ("--method", "auto", *TEXT),
            ("EuroBertForMaskedLM has no next token to predict, by which --method auto measures", "language model"),
        ),
        (  # a decoder alone, whose cross-attention has nothing to read
            "bart",
            ("--method", "aligned", *TEXT),
            ("reads text without ever calling model.decoder.layers.0.encoder_attn", "--data none"),
        ),
    ],
)
def test_a_model_that_does_not_run_as_it_would_have_to(
    source: Any, refuse: Any, model_type: str, options: Any, says: tuple[str, ...]
) -> None:
    refuse("convert", source(model_type), "-g", 2, "-o", "out", *options, says=says)


def test_no_tokenizer(source: Any, refuse: Any) -> None:
    for file in (model := source()).glob("tokenizer*"):
        file.unlink()
    says = (f"The tokenizer of {model} cannot be loaded", "Expected tokenizer.json", "Copy the tokenizer's files")
    refuse("convert", model, "-g", 2, "-o", "out", "--method", "aligned", *TEXT, says=says)


OVERFLOW = ("not finite on the calibration text", "Expected finite activations", "--dtype float32, or other text")


def overflowing(source: Path, layer: int) -> Path:
    """Make the weights of a layer so large, and yet finite, that what it computes is not."""
    content = load_file(source / "model.safetensors")
    for part in "vo":
        content[f"model.layers.{layer}.self_attn.{part}_proj.weight"] *= 1e25
    save_file(content, source / "model.safetensors", {"format": "pt"})
    return source


@pytest.mark.parametrize(
    ("options", "layer"),
    [(("--method", "aligned"), 0), (("--method", "aligned"), 1), (("--refine", "refit"), 0), (("--method", "auto"), 1)],
)
def test_activations_that_overflow(source: Any, refuse: Any, options: Any, layer: int) -> None:
    model = overflowing(source(), layer)
    refuse("convert", model, "-g", 2, "-o", "new/out", *options, *TEXT, says=OVERFLOW)


def test_activations_that_overflow_behind_a_finished_layer(source: Any, cli: Any, tmp_path: Path, tree: Any) -> None:
    model = overflowing(source(), 1)
    before = tree(tmp_path)
    answer = cli("convert", model, "-g", 2, "-o", "new/out", "--refine", "distil", *TEXT)
    assert (answer.code, answer.out) == (1, "")
    done, refusal = answer.err.splitlines()
    assert done.startswith("layer 1/2")
    assert refusal.startswith("error: The outputs of model.layers.1.self_attn are")
    assert all(part in refusal for part in OVERFLOW)
    assert tree(tmp_path) == before


def test_a_full_disk_keeps_what_was_finished(
    source: Any, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = ("convert", source(), "-g", 2, "-o", "out", "--method", "aligned", "--refine", "distil", *TEXT)
    assert cli(*request[:-9], "whole", *request[-8:]).code == 0
    write, left = Path.write_bytes, iter(range(1))

    def full(path: Path, content: bytes) -> int:
        if path.name.startswith("layer-") and next(left, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        answer = cli(*request)
    assert (answer.code, answer.out) == (1, "")
    last = answer.err.splitlines()[-1]
    assert "Writing out failed: No space left on device" in last
    assert f"What was finished stays in {tmp_path / '.out.layers'}, and the same command goes on" in last
    refined = []
    monkeypatch.setattr(
        refine, "refit_values", lambda *args, refit=refine.refit_values: (refined.append(1), refit(*args))[1]
    )
    assert cli(*request).code == 0
    assert refined == [1]
    results = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "whole")]
    assert results[0] == results[1]
    assert {path.name for path in tmp_path.iterdir()} == {"source", "text.txt", "out", "whole"}


def test_a_base_model_has_no_logits_to_train_on(refuse: Any, tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path / "whole").base_model
    model.save_pretrained(tmp_path / "source")
    save_tokenizer(tmp_path / "source")
    save_text(tmp_path / "text.txt", 2000)
    says = ("LlamaModel has no next token to predict, by which --refine joint measures", "--refine distil")
    refuse("convert", tmp_path / "source", "-g", 2, "-o", "out", "--refine", "joint", *TEXT, says=says)
