"""The loss on held-out rows: exact sums, divided once, whatever the batches and processes.

Legend: B rows of a batch, T tokens that logits are given for.
"""

from typing import Any

import torch
from torch import nn

from mha2gqa.model.divergence import target_losses
from mha2gqa.verbs.uptrain.text import Task


@torch.no_grad()
def loss_sums(
    model: nn.Module,
    rows: Any,
    task: Task,
    batch_size: int,
    device: torch.device,
    rank: int = 0,
    world: int = 1,
) -> torch.Tensor:
    """Return the sum of the predicted tokens' losses in nats, and their number, of one process's share of the rows.

    Every process runs as many batches, the last perhaps with nothing to predict: a sharded model needs all of them.

    Args:
        model: In evaluation mode.
        rows: What to measure on.
        task: Makes batches of them, and says what is predicted.
        batch_size: B.
        device: Where the model takes its inputs.
        rank: Number of the process.
        world: How many processes there are.

    Returns:
        fp64 `[2]`, on the CPU.
    """
    sums = torch.zeros(2, dtype=torch.float64)
    starts = list(range(0, len(rows), batch_size))
    for number in range(rank, len(starts) + -len(starts) % world, world):
        start = starts[min(number, len(starts) - 1)]
        batch = task.collate([rows[index] for index in range(start, min(start + batch_size, len(rows)))])
        targets_BT = task.targets(batch.pop("labels"))
        if number >= len(starts):
            targets_BT = torch.full_like(targets_BT, -100)
        fed = {name: value.to(device) for name, value in batch.items()}
        losses, count = target_losses(model(**fed, use_cache=False).logits, targets_BT)
        sums += torch.tensor([sum(losses.tolist()), int(count)], dtype=torch.float64)
    return sums
