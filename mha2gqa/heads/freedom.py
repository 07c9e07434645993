"""What may be done to heads without changing what their layer computes: the words for it, which tables use."""

from typing import Literal, TypeAlias

Freedom: TypeAlias = Literal["free", "scaled", "normed", "signed", "fixed"]
"""What each head's keys (values) may be multiplied with when its queries (outputs) make up for it.

`free`: values with any invertible matrix; keys with a complex number per rotary plane, and with any
invertible matrix on the rows that are not rotated. `scaled`: a real number per plane (per channel, for values
and rows that are not rotated). `signed`: a sign instead of the number. `normed`: a sign, and one positive
number a head that a norm takes out again. `fixed`: nothing.
"""

Pairing: TypeAlias = Literal["half", "interleaved"]
"""Which rows of a head are one rotary plane: j and j + P, or 2j and 2j + 1."""
