"""What cannot be swept over is refused with one message, before anything is converted or written."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import EuroBertModel

from mha2gqa import SweepOptions, sweep
from mha2gqa.errors import SweepError
from tests.conftest import Run
from tests.families.tiny import save_tiny, tiny_config
from tests.verbs.verify.subjects import save_source, save_text, save_tokenizer

TEXT = ("--data", "text.txt", "--context", 24)


@pytest.fixture(scope="module")
def _source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_source(tmp_path_factory.mktemp("refused") / "source")


@pytest.fixture(autouse=True)
def source(_source: Path, tmp_path: Path) -> Path:
    save_text(tmp_path / "text.txt", 2000)
    return Path(shutil.copytree(_source, tmp_path / "source"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("-g", "2,3"), ("--groups 3", "one of 1, 2, 4")),
        (("-g", "8"), ("--groups 8", "one of 1, 2, 4")),
        (("--methods", "mean,median"), ("'median'", "mean, first, random, aligned")),
        (("--methods", "auto"), ("'auto'", "What --method auto tries is what a sweep compares")),
        (("--methods", ","), ("nothing to sweep over",)),
        (("--refine", "none,refit", "--methods", "mean"), ("--refine refit needs calibration text", "--data self")),
        (("--data", "text.txt", "--eval-data", "./text.txt"), ("--data and by --eval-data",)),
        (("--data", "text.txt", "--eval-data", "self", "--methods", "mean"), ("makes use of --data",)),
        ((*TEXT, "--cache", "1%", "--methods", "aligned"), ("--cache 1.0% leaves less than one KV head a layer",)),
        ((*TEXT, "--window", 24), ("--context 24 ends within the window of 24 tokens",)),
        (("--data", "nothing.txt"), ("no file 'nothing.txt'",)),
        ((*TEXT, "--context", 100_000), ("--context 100000",)),
        ((*TEXT, "--activation-memory", "much"), ("much is no size",)),
        ((*TEXT, "-o", "source"), ("source", "is a directory")),
        ((*TEXT, "-o", "text.txt"), ("text.txt does not hold the results of a sweep", "-o")),
        ((*TEXT, "-o", "text.txt", "--force"), ("text.txt does not hold the results of a sweep",)),
        ((*TEXT, "--report", "text.txt"), ("text.txt", "--report")),
        ((*TEXT, "--device", "tpu"), ("no device 'tpu'",)),
    ],
)
def test_it_is_refused(refuse: Any, arguments: tuple[object, ...], says: tuple[str, ...]) -> None:
    refuse("sweep", "source", *arguments, says=says)


@pytest.mark.parametrize("arguments", [("-g", "two"), ("-g", "2;1"), ("--refine", "none,polish")])
def test_a_list_that_is_none_is_wrong_usage(cli: Any, arguments: tuple[object, ...], tmp_path: Path) -> None:
    answer: Run = cli("sweep", "source", *arguments)
    assert answer.code == 2
    assert str(arguments[1]).split(",")[-1] in answer.err


def test_a_kept_checkpoint_is_not_replaced(refuse: Any, tmp_path: Path) -> None:
    (tmp_path / "kept/source-gqa2-mean").mkdir(parents=True)
    refuse(*("sweep", "source", *TEXT, "-g", 2, "--keep", "kept"), says=("kept/source-gqa2-mean exists", "--keep"))


def test_a_masked_model_has_no_loss_to_sweep_over(refuse: Any, tmp_path: Path) -> None:
    save_tiny("eurobert", tmp_path / "masked")
    save_tokenizer(tmp_path / "masked")
    refuse(*("sweep", "masked", *TEXT), says=("EuroBertForMaskedLM", "verify"))


def test_a_model_without_a_head_has_no_loss_either(refuse: Any, tmp_path: Path) -> None:
    EuroBertModel(tiny_config("eurobert")).save_pretrained(tmp_path / "bare")
    save_tokenizer(tmp_path / "bare")
    refuse(*("sweep", "bare", *TEXT), says=("EuroBertModel has no head, and so no loss on text", "verify"))


def test_it_is_refused_from_python_as_well() -> None:
    with pytest.raises(SweepError, match="median"):
        sweep(SweepOptions(methods=("median",)))
