"""The loss on held-out blocks: exact sums, divided once, whatever the batches and processes.

Legend: B blocks of a batch, T tokens of a block.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from mha2gqa.training.objective import cross_entropy


@torch.no_grad()
def loss_sums(
    model: nn.Module,
    blocks: Any,
    collate: Callable[[Any], dict[str, torch.Tensor]],
    batch_size: int,
    device: torch.device,
    rank: int = 0,
    world: int = 1,
) -> torch.Tensor:
    """Return the sum of the next tokens' losses in nats, and their number, of one process's share of the blocks.

    Every process runs as many batches, the last perhaps with nothing to predict: a sharded model needs all of them.

    Args:
        model: A causal model in evaluation mode.
        blocks: What to measure on.
        collate: Makes batches of them.
        batch_size: B.
        device: Where the model takes its inputs.
        rank: Number of the process.
        world: How many processes there are.

    Returns:
        fp64 `[2]`, on the CPU.
    """
    sums = torch.zeros(2, dtype=torch.float64)
    starts = list(range(0, len(blocks), batch_size))
    for number in range(rank, len(starts) + -len(starts) % world, world):
        start = starts[min(number, len(starts) - 1)]
        batch = collate([blocks[index] for index in range(start, min(start + batch_size, len(blocks)))])
        labels_BT = batch.pop("labels")
        if number >= len(starts):
            labels_BT = torch.full_like(labels_BT, -100)
        fed = {name: value.to(device) for name, value in batch.items()}
        total, count = cross_entropy(model(**fed, use_cache=False).logits, labels_BT)
        sums += torch.stack([total, count.double()])
    return sums
