"""A norm that does nothing: the host's RMSNorm over the latent (and over queries with biases), made linear.

RMSNorm(c) = g·c / sqrt(mean(c²) + eps). Where the rms of c is s·sqrt(eps) with s far below 1, that is g·c / sqrt(eps)
less a share of about s²/2. So whatever writes c is scaled down until its rms is s·sqrt(eps), and the gain is 1/s: the
norm then gives, and a cache holds, c at the size that it had before. fp32 and bf16 have the exponents for an s so small
that nothing is left of the error. fp16 has not, below 6e-8 nothing exists; there s is a compromise, the gain makes up
for the error of a token of mean size, sqrt(1 + s²), and the weights, which would be smaller still by the root of the
model's width, are lifted by a power of two that the norm before them gives up.

The host's class fixes this norm's eps at 1e-6, other engines take `rms_norm_eps` of the config: the two are made equal
(`tensors.py`).
"""

from dataclasses import dataclass

import torch

EPS = 1e-6
"""Of the norm over the latent in the host's class."""


@dataclass(frozen=True)
class Linear:
    """How small what is normed is kept."""

    size: float
    """s: its rms, in units of sqrt(eps)."""
    lift: float
    """A power of two: what reads the hidden state is multiplied with it, the gain of the norm before divided by it."""

    @property
    def factor(self) -> float:
        """What rows of rms 1 are multiplied with before the norm."""
        return self.size * float(EPS**0.5)

    @property
    def gain(self) -> float:
        """The norm's gain, the same for all channels."""
        return float((1 + self.size**2) ** 0.5) / self.size


_HALF = Linear(2.0**-5, 2.0**9)
_WIDE = Linear(2.0**-12, 1.0)
"""At which the error is 3e-8: less than fp32 resolves."""


def linear(dtype: torch.dtype) -> Linear:
    """Return how small what is normed is kept in weights of a dtype."""
    return _HALF if dtype == torch.float16 else _WIDE
