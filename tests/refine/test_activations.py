"""What is kept comes back as it was, within the budget, in memory or on disk, and leaves no file."""

import errno
import os
from collections import UserDict
from pathlib import Path

import pytest
import torch

from mha2gqa.refine.activations import Activations, map_tensors

SIZE = 4 * 100
"""Bytes of one of the tensors here."""


def numbers(seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(10, 10, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("budget", [0, 10**9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_what_is_kept_comes_back(budget: int, dtype: torch.dtype, tmp_path: Path) -> None:
    memory, tensor = Activations(budget, tmp_path), numbers(0).to(dtype)
    kept = memory.keep(tensor)
    expected = tensor.clone()
    tensor.zero_()
    assert (kept.dtype, kept.shape) == (dtype, expected.shape)
    assert torch.equal(kept, expected)
    assert (memory.spilled, memory.in_memory) == ((tensor.nbytes, 0) if budget == 0 else (0, tensor.nbytes))


def test_the_budget_is_respected_and_given_back(tmp_path: Path) -> None:
    memory = Activations(2 * SIZE, tmp_path)
    kept = [memory.keep(numbers(seed)) for seed in range(4)]
    assert (memory.in_memory, memory.spilled) == (2 * SIZE, 2 * SIZE)
    assert all(torch.equal(one, numbers(seed)) for seed, one in enumerate(kept))
    del kept[0]
    assert memory.in_memory == SIZE
    again = memory.keep(numbers(7))
    assert (memory.in_memory, memory.spilled) == (2 * SIZE, 2 * SIZE)
    assert torch.equal(again, numbers(7))


def test_no_file_is_left_even_while_tensors_are_in_use(tmp_path: Path) -> None:
    kept = Activations(0, tmp_path).keep([numbers(1), {"x": (numbers(2), None, 3)}])
    assert list(tmp_path.iterdir()) == []
    assert torch.equal(kept[0], numbers(1))
    assert torch.equal(kept[1]["x"][0], numbers(2))
    assert kept[1]["x"][1:] == (None, 3)


def test_empty_and_strided_tensors(tmp_path: Path) -> None:
    memory = Activations(0, tmp_path)
    assert memory.keep(torch.empty(0, 4)).shape == (0, 4)
    assert torch.equal(memory.keep(numbers(1).T[::2]), numbers(1).T[::2])


def test_a_full_disk_is_an_error_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        Activations(0, tmp_path).keep(numbers(1))
    assert list(tmp_path.iterdir()) == []


def test_a_dict_that_layers_share_is_copied() -> None:
    shared: UserDict[str, tuple[torch.Tensor, ...]] = UserDict(full=(torch.ones(2), torch.zeros(2)))
    copied = map_tensors(lambda tensor: tensor + 1, (shared, {"same": shared}))
    copied[0]["sliding"] = ()
    assert isinstance(copied[0], UserDict)
    assert list(shared) == ["full"]
    assert copied[0]["full"][0].tolist() == copied[1]["same"]["full"][0].tolist() == [2, 2]
    assert shared["full"][0].tolist() == [1, 1]
