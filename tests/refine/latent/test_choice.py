"""A cache is divided by loss on text kept aside, and a portable ladder chosen by the fit."""

from pathlib import Path

import pytest
import torch

from mha2gqa.refine.latent.choice import Known, Trial, choose
from mha2gqa.refine.latent.files import LatentFiles
from mha2gqa.refine.statistics import gather_statistics
from mha2gqa.targets.latent.form import RotaryKey
from mha2gqa.targets.latent.host import LatentHost, LatentSource
from mha2gqa.targets.latent.rope import portable_keys
from mha2gqa.texts.blocks import mean_loss
from tests.families.oracle import input_ids
from tests.families.tiny import tiny_config, tiny_model
from tests.targets.latent.models import architecture

CACHE, WIDTHS = 48, (8, 16, 24)


@pytest.fixture(scope="module")
def known() -> Known:
    model = tiny_model(tiny_config("llama"))
    source = LatentSource.of(architecture(model.config))
    batches = [input_ids(48, seed=seed) for seed in range(4)]
    return Known(model, source, gather_statistics(model, source.layers, batches, lambda *_: None))


@pytest.fixture(scope="module")
def aside(known: Known) -> list[torch.Tensor]:
    """What the model itself would say next, so that whatever changes it loses."""
    ids = input_ids(4, seed=9)
    return [known.original.generate(ids, max_new_tokens=40, do_sample=False, pad_token_id=0, eos_token_id=None)]


@pytest.mark.parametrize("free", [True, False], ids=["free", "portable"])
def test_the_division_that_loses_the_least_is_chosen(
    known: Known, aside: list[torch.Tensor], free: bool, tmp_path: Path
) -> None:
    trials: list[Trial] = []

    def score(key: RotaryKey, latent: int) -> Trial:
        files = LatentFiles(tmp_path / f"{latent}-{key.width}", LatentHost(known.source, key, latent))
        trials.append(Trial(key, latent, mean_loss(known.student(files, lambda *_: None), aside)))
        return trials[-1]

    best = choose(known, [(CACHE - width, width) for width in WIDTHS], score, free=free)
    assert [trial.key.width for trial in trials] == list(WIDTHS)
    assert all(trial.latent + trial.key.width == CACHE for trial in trials)
    assert best.loss == min(trial.loss for trial in trials) > mean_loss(known.original, aside)
    assert len({trial.loss for trial in trials}) == len(trials)


def test_layers_that_were_written_are_not_fitted_again(known: Known, tmp_path: Path) -> None:
    files = LatentFiles(tmp_path, LatentHost(known.source, known.key(16, 32, free=False), 32))
    fitted: list[int] = []
    first = known.student(files, lambda done, _: fitted.append(done))
    second = known.student(files, lambda done, _: fitted.append(done))
    assert fitted == [1] * len(known.source.layers)
    assert torch.equal(logits_of(first, input_ids()), logits_of(second, input_ids()))
    files.write_loss(0.1)
    files.drop_layers()
    assert (files.read_loss(), files.has(0)) == (0.1, False)


def test_the_ladder_is_the_one_that_the_fit_prefers(known: Known) -> None:
    lost = {
        key.name: sum(known.fitted(layer, key, 32).lost for layer in known.source.layers)
        for key in portable_keys(known.source.rotary, 8, context=known.source.context)
    }
    assert len(lost) > 2
    assert known.key(16, 32, free=False).name == min(lost, key=lambda name: lost[name])


@torch.no_grad()
def logits_of(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=ids).logits
    return found
