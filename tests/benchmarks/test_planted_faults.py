"""The planted-fault table: its page is whole, and a sample of its cells is what `verify` finds now."""

from pathlib import Path

import plant
import planted_faults
import pytest

WAYS = ("mean", "aligned", "latent")
SAMPLE = (
    ("Tensors", "one bit of a key projection", "file", "file", "file"),
    ("Tensors", "NaN in the embedding", "file", "file", "file"),
    ("Tensors", "keys in BF16", "file", "file", "file"),
    ("Tensors, with the record's checksums forged to fit", "value projection", "file", "file", "record alone"),
    ("Tensors, with the record's checksums forged to fit", "MLP, said to be changed", "file", "file", "file"),
    ("The record", "other groups", "file", "file", "file"),
    ("The record", "rope_theta, in the config, too", "file", "file", "file"),
    ("config.json", "tied embeddings", "file", "file", "file"),
    ("Files beside the weights", "modeling_x.py", "file", "file", "file"),
    ("The original", "one bit of a key", "file: refused", "file: refused", "file: refused"),
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted_faults.prepare(tmp_path_factory.mktemp("planted"), WAYS)


@pytest.mark.parametrize(("kind", "name", "mean", "aligned", "latent"), SAMPLE, ids=lambda value: str(value)[:30])
def test_a_sample_is_found_where_the_table_says(
    prepared: Path, kind: str, name: str, mean: str, aligned: str, latent: str
) -> None:
    fault = plant.KINDS[kind][name]
    assert [planted_faults.found(prepared, way, fault) for way in WAYS] == [mean, aligned, latent]


def test_the_page_has_every_fault_and_way() -> None:
    faults = [name for kind in plant.KINDS.values() for name in kind]
    assert len(faults) >= 60
    text = planted_faults.PAGE.read_text(encoding="utf-8")
    assert f"| fault | {' | '.join(planted_faults.WAYS)} |" in text
    assert [name for name in faults if f"\n| {name} |" not in text] == []
    assert planted_faults.MISSED not in text.split("## Tensors", 1)[1]
