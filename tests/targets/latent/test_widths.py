"""How a cache may be divided."""

import pytest

from mha2gqa.errors import GroupsError
from mha2gqa.targets.latent.widths import like_groups, rotary_widths


def test_a_few_widths_are_tried() -> None:
    assert rotary_widths(128) == [16, 24, 32, 48, 64]
    assert rotary_widths(576) == [72, 108, 144, 216, 288]


@pytest.mark.parametrize("cache", [4, 6, 8, 10, 16, 30, 64, 128, 1024])
def test_both_parts_have_room(cache: int) -> None:
    widths = rotary_widths(cache)
    assert widths
    assert all(width % 2 == 0 and 0 < width < cache for width in widths)
    assert widths == sorted(set(widths))


@pytest.mark.parametrize("cache", [0, 2, 7, -8])
def test_what_cannot_be_divided_is_refused(cache: int) -> None:
    with pytest.raises(GroupsError, match=str(cache)):
        rotary_widths(cache)


def test_the_cache_of_groups() -> None:
    assert like_groups(4, 128, 128) == 1024
    assert like_groups(1, 64, 32) == 96
