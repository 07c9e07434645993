"""Time and memory of fitting one layer at the shape of Llama-2-7B: 32 heads of 128, C = 512, R = 64.

    OMP_NUM_THREADS=1 python benchmarks/latent_layer.py [--heads 32] [--width 128] [--latent 512] [--rope-width 64]

Weights are random; inputs have a spectrum that falls as those of trained layers do, so that the fit has something to
find. Nothing is loaded, and no text is read.
"""

import argparse
import resource
import time

import torch

from mha2gqa.heads.attention import AttentionHeads, Rotary, Statistics
from mha2gqa.heads.metric import Full
from mha2gqa.targets.latent.fit import fit
from mha2gqa.targets.latent.rope import ladder_key


def main() -> None:
    """Fit, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("heads", 32), ("width", 128), ("latent", 512), ("rope-width", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    heads, inputs = _layer(options.heads, options.width), options.heads * options.width
    metric = Full(_moment(inputs))
    before, started = _memory(), time.process_time()
    key = ladder_key(heads.rotary, options.rope_width // 2, options.rope_width // 2)
    found = fit(heads, Statistics(metric, metric), key, options.latent, options.width**-0.5)
    seconds = time.process_time() - started
    lost = f"{found.scores_lost:.1%} of scores, {found.values_lost:.1%} of values lost"
    print(f"{seconds:.0f} CPU s, {found.rounds} rounds, {_memory():.1f} GB at most ({before:.1f} before), {lost}")


def _layer(count: int, width: int) -> AttentionHeads:
    generator, inputs = torch.Generator().manual_seed(0), count * width
    q, k, v, o = (torch.randn(count, width, inputs, generator=generator) / inputs**0.5 for _ in range(4))
    speeds = tuple(1e4 ** (-2 * plane / width) for plane in range(width // 2))
    rotary = Rotary(width, "half", speeds)
    return AttentionHeads(q_HEX=q, k_KEX=k, v_KFX=v, o_HDF=o.mT.contiguous(), rotary=rotary, keys="free", values="free")


def _moment(inputs: int) -> torch.Tensor:
    """Return a second moment whose eigenvalues fall as 1/n."""
    generator = torch.Generator().manual_seed(1)
    mixed = torch.randn(inputs, inputs, generator=generator) / inputs**0.5
    moment_XX: torch.Tensor = (mixed / torch.arange(1, inputs + 1)) @ mixed.T
    return moment_XX


def _memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    main()
