"""How long a run is: three ways to say it, exactly one of which is given."""

from pathlib import Path
from typing import Any

import pytest

from mha2gqa import UptrainOptions
from mha2gqa.errors import TrainingError
from mha2gqa.files.source import reference_directory
from mha2gqa.verbs.uptrain.length import check_length, find_length


@pytest.mark.parametrize("text", ["", "many", "0"])
def test_what_is_no_count_is_refused(text: str) -> None:
    with pytest.raises(TrainingError, match="--tokens is"):
        check_length(UptrainOptions(tokens=text))


@pytest.mark.parametrize("alpha", [0, -0.05, 1e300, float("inf"), float("nan")])
def test_what_is_no_fraction_is_refused(alpha: float) -> None:
    with pytest.raises(TrainingError, match="--alpha is"):
        check_length(UptrainOptions(alpha=alpha))


@pytest.mark.parametrize(
    ("options", "original", "steps"),
    [
        ({"steps": 7}, None, 7),
        ({"tokens": "10k"}, None, 10),
        ({"tokens": "1"}, None, 1),
        ({"alpha": 0.05, "pretraining_tokens": "2M"}, None, 98),
        ({"alpha": 0.05}, reference_directory(), 488),
        ({"alpha": 0.05, "pretraining_tokens": "2M"}, reference_directory(), 98),
    ],
)
def test_steps(options: dict[str, Any], original: Path | None, steps: int) -> None:
    length = find_length(UptrainOptions(**options), original, 1024)
    assert (length.steps, length.tokens) == (steps, 1024 * steps)
    if "alpha" in options:
        assert length.alpha == pytest.approx(options["alpha"], rel=0.01)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({}, "by nothing"),
        ({"steps": 3, "alpha": 0.1}, "by --steps and --alpha"),
        ({"steps": 0}, "--steps is 0"),
        ({"alpha": -0.1}, "--alpha is -0.1"),
        ({"alpha": float("nan")}, "--alpha is nan"),
        ({"tokens": "some"}, "--tokens is 'some'"),
        ({"alpha": 0.1, "pretraining_tokens": "lots"}, "--pretraining-tokens is 'lots'"),
    ],
)
def test_a_length_that_is_none_is_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(TrainingError, match=problem):
        check_length(UptrainOptions(**options))


def test_a_fraction_of_an_unknown_pretraining_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="of how many tokens"):
        find_length(UptrainOptions(alpha=0.1), tmp_path, 1024)
