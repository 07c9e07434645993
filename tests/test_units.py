"""Numbers with suffixes and in per cent, as functions and on the command line."""

from pathlib import Path
from typing import Any

import pytest

from mha2gqa.units import parse_count, parse_share


@pytest.mark.parametrize(
    ("text", "count"),
    [("20M", 20_000_000), ("2T", 2 * 10**12), ("1.5b", 1_500_000_000), ("4096", 4096), ("1e6", 10**6), ("3_000", 3000)],
)
def test_counts(text: str, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["", "many", "-5", "0", "20 MB", "nan", "1..5M", "1e400", "2000T"])
def test_what_is_no_count_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no number such as"):
        parse_count(text)


def test_shares() -> None:
    assert [parse_share(text) for text in ("1%", "0.01", " 2.5 % ", "0")] == pytest.approx([0.01, 0.01, 0.025, 0])
    for text in ("", "%", "one", "1%%"):
        with pytest.raises(ValueError, match="could not convert"):
            parse_share(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("convert", "-g", 4, "--method", "auto", "--max-ppl-increase", "1%", "--tokens", "2K", "--dry-run"), None),
        (("convert", "-g", 4, "--method", "auto", "--max-ppl-increase", "-1%"), "-1% is below 0"),
        (("convert", "-g", 4, "--method", "auto", "--max-ppl-increase", "much"), "'much' is no number or percentage"),
        (("convert", "-g", 4, "--method", "aligned", "--tokens", "1"), "1 is less than 2"),
        (("verify", "--tokens", "3B"), "3B is more than 2,147,483,648"),
        (("verify", "--seed", 1 << 64), "less than or equal to 4294967295"),
        (("bench", "--seed", -1), "greater than or equal to 0"),
        (("convert", "--window", 8, "--window-layers", "0-99999999999"), "names layers that no model has"),
        (("verify", "--min-top1", "110%"), "110% is not from 0 to 1"),
        (("sweep", "--eval-tokens", "few"), "'few' is no number such as"),
    ],
)
def test_options_take_them(cli: Any, tmp_path: Path, options: tuple[object, ...], message: str | None) -> None:
    answer = cli(*options, *(("-o", tmp_path / "out") if options[0] == "convert" else ()))
    assert answer.code == (2 if message else 0), answer
    assert message is None or message in " ".join(answer.err.split())


@pytest.mark.parametrize("text", ["1.5", "64.5", "0.5"])
def test_a_part_of_one_is_no_number(text: str) -> None:
    with pytest.raises(ValueError, match="is no number such as"):
        parse_count(text)
    assert parse_count("1.5K") == 1500
