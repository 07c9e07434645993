"""`verify` with windows: what it runs beyond them, and a window that is not what the record says."""

import json
from pathlib import Path
from typing import Any

import pytest

from mha2gqa import ConvertOptions, VerifyOptions, convert, verify
from mha2gqa.errors import TextError
from mha2gqa.verbs.verify.outcome import Verification
from tests.hosts.test_windows import source_model
from tests.verbs.verify.subjects import save_text, save_tokenizer

W = 6


@pytest.fixture
def converted(tmp_path: Path) -> Any:
    """Convert a tiny Llama of its own vocabulary, and return where the result is."""

    def make(**asked: Any) -> Path:
        source = tmp_path / "source"
        source_model("llama", vocab_size=128, num_key_value_heads=4, max_position_embeddings=64).save_pretrained(source)
        save_tokenizer(source)
        save_text(tmp_path / "text.txt", 2000)
        return convert(ConvertOptions(model=str(source), output=tmp_path / "result", **asked)).output

    return make


def verified(output: Path, **asked: Any) -> Verification:
    return verify(VerifyOptions(converted=output, data=(str(output.with_name("text.txt")),), **asked))


@pytest.mark.parametrize("asked", [{"window": W}, {"window": W, "window_layers": "1-2", "groups": 2}])
def test_a_window_is_run_beyond_and_compared_exactly(converted: Any, asked: dict[str, Any]) -> None:
    report = verified(converted(**asked))
    assert report.file and not report.file.findings and not report.file.checksummed
    assert report.load
    checks = {check.name: check for check in report.load.checks}
    assert not [check for check in checks.values() if not check.passed]
    dynamic, static = (checks[f"window, {kind} cache"].detail for kind in ("dynamic", "static"))
    assert (f"{W - 1} in" in dynamic, f"{W} in" in static) == (True, True)
    assert "logit 0.0e+00" in checks["window, outputs"].detail
    assert report.outputs and report.outputs.text.context > W
    near, far = report.outputs.positions[0], report.outputs.positions[-1]
    assert (near.original == near.converted) == ("groups" not in asked)
    assert far.original != far.converted


def test_another_window_than_recorded_is_found(converted: Any) -> None:
    output = converted(window=W)
    config = json.loads((output / "config.json").read_text())
    assert config["sliding_window"] == W
    (output / "config.json").write_text(json.dumps(config | {"sliding_window": W + 1}))
    report = verify(VerifyOptions(converted=output, levels=("file", "load")))
    assert {"config.json: sliding_window", "window, dynamic cache", "window, outputs"} <= {
        finding.guilty for finding in report.findings
    }


def test_text_that_ends_within_the_window_is_refused(converted: Any) -> None:
    with pytest.raises(TextError, match="ends within the window of 6"):
        verified(converted(window=W), context=W)
