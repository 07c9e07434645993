"""The outputs level of `verify` for models without a head: the last hidden states of both on the same tokens.

Sentence encoders are used by the mean of their last hidden states over the tokens of a text; the cosine of the
two models' means is what the limit is for. The blocks are full, so that no padding is to be left out. What the
class does on top (its pooler, the normalisation of a sentence encoder) is not compared.

Legend: B blocks of a batch, T tokens of a block, D width.
"""

import time
from dataclasses import dataclass, field, replace

import torch
from transformers import PreTrainedModel

from mha2gqa.model.feed import attempt, inputs
from mha2gqa.progress import Advance
from mha2gqa.verbs.verify.judge import cosine_findings
from mha2gqa.verbs.verify.levels import EmbeddingsLevel
from mha2gqa.verbs.verify.load_level import Models
from mha2gqa.verbs.verify.measures import Cosines
from mha2gqa.verbs.verify.options import VerifyOptions
from mha2gqa.verbs.verify.outcome import Limits
from mha2gqa.verbs.verify.outputs_level import EvaluationText, batches, describe_text, layer_errors, read_pairs


@dataclass
class CosineSums:
    """Cosines of what was read so far."""

    blocks: list[torch.Tensor] = field(default_factory=list)
    """Of the means, `[B]` for each batch."""
    tokens: list[torch.Tensor] = field(default_factory=list)
    """Of the hidden states, `[B, T]` for each batch."""
    largest: float = 0.0
    """Largest difference of a number."""

    def add(self, original_BTD: torch.Tensor, converted_BTD: torch.Tensor) -> None:
        """Take the last hidden states of a batch."""
        first_BTD = original_BTD.double().cpu()
        second_BTD = converted_BTD.double().cpu()
        self.blocks.append(cosine(first_BTD.mean(1), second_BTD.mean(1)))
        self.tokens.append(cosine(first_BTD, second_BTD))
        self.largest = max(self.largest, (first_BTD - second_BTD).abs().max().item())

    def result(self) -> Cosines:
        """Return the means and the extremes."""
        blocks_N, tokens_NT = torch.cat(self.blocks), torch.cat(self.tokens)
        return Cosines(
            mean=blocks_N.mean().item(),
            least=blocks_N.min().item(),
            tokens=tokens_NT.mean().item(),
            largest_difference=self.largest,
        )


def cosine(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return the cosines of the vectors of the last dimension; exactly 1 for equal vectors, in spite of rounding."""
    similar = torch.nn.functional.cosine_similarity(one, other, dim=-1).clamp(-1, 1)
    return torch.where((one == other).all(-1), 1.0, similar)


@torch.inference_mode()
def compare_embeddings(
    models: Models, text: EvaluationText, limits: Limits, options: VerifyOptions, advance: Advance
) -> EmbeddingsLevel | str:
    """Compare the last hidden states of both models on the same tokens.

    Args:
        models: The original and the converted checkpoint, which give embeddings.
        text: The tokens, as `find_text` gives them.
        limits: What they may differ by.
        options: How many blocks are run at a time.
        advance: Told of every batch, in tokens.

    Returns:
        The level, or why the original does not run on tokens alone.

    Raises:
        PairError: The converted checkpoint cannot be run.
    """
    started = time.monotonic()
    ids_NT = text.blocks.tokens_NT
    original = models.original
    probed = attempt(lambda: _states(original, ids_NT[:1]))
    if isinstance(probed, str):
        return f"the original gives no hidden states for tokens alone ({probed})"
    layers, sums = layer_errors(models), CosineSums()
    for first_BTD, second_BTD in read_pairs(_states, models, layers, batches(ids_NT, options.batch_size), advance):
        sums.add(first_BTD, second_BTD)
    level = EmbeddingsLevel(
        text=describe_text(text.blocks, ids_NT.numel()),
        cosines=sums.result(),
        layers=layers.results(),
        dtype=models.dtype,
        device=original.device.type,
        seconds=time.monotonic() - started,
        findings=(),
    )
    return replace(level, findings=tuple(cosine_findings(level, limits)))


def _states(model: PreTrainedModel, ids_BT: torch.Tensor) -> torch.Tensor:
    # Given, because a class without a mask may take one token for padding.
    fed = inputs(model, ids_BT) | {"attention_mask": torch.ones_like(ids_BT).to(model.device)}
    states_BTD: torch.Tensor = model(**fed).last_hidden_state
    return states_BTD
