"""The rows that a host rotates are those that the source rotates, for every width of a head."""

from mha2gqa.hosts.rotary import rotary


def test_loaders_cut_off_at_the_same_row() -> None:
    for width in range(2, 257):
        for rows in range(2, width + 1, 2):
            factor = rotary(rows, width, 10000.0)["partial_rotary_factor"]
            assert int(width * factor) == rows
            assert 0 < factor <= 1
