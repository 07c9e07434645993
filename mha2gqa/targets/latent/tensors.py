"""The host's tensors: those of attention out of a fitted layer, all others renamed, or with numbers folded in.

*One eps.* The host's class fixes the eps of the latent's norm at 1e-6, other engines read `rms_norm_eps` there. So the
config says 1e-6, and a source with another eps has its whole residual stream scaled by r = sqrt(1e-6 / eps): a norm of
r x with eps r² is the norm of x with eps. The stream is a sum of embeddings and of what output and down projections
add: these are multiplied. Where embedding and output projection are one table, the final norm's gain is divided.

*Queries.* The host divides scores by sqrt(E + R), the source multiplies them by its own scale, mostly 1 / sqrt(E); the
queries take up the ratio. In the part that is not rotated a query stays what it is, and W_UK lifts the latent to it.

Legend: as in `form.py`, Z = H·E, V vocabulary.
"""

from collections.abc import Container, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from mha2gqa.families.blueprint import Blueprint
from mha2gqa.heads.attention import Statistics
from mha2gqa.heads.metric import Metric
from mha2gqa.hosts.host import Recipe
from mha2gqa.targets.latent.config import HostShape
from mha2gqa.targets.latent.form import LatentHeads
from mha2gqa.targets.latent.linear import EPS, Linear
from mha2gqa.targets.latent.sources import Facts


@dataclass(frozen=True)
class Folding:
    """What a source's numbers become factors of."""

    embedding: float
    branch: float
    """Of output and down projections."""
    final: float
    """Of the final norm's gains."""
    centred: bool
    """Whether what is written into the stream has its mean taken off: norms that subtract it find none."""

    @classmethod
    def of(cls, facts: Facts) -> "Folding":
        """Return the factors that leave every logit what it is, and make eps the host's."""
        stream = (EPS / facts.eps) ** 0.5
        embedding = facts.embedding * stream
        final = facts.logits / (embedding if facts.tied else 1.0)
        return cls(embedding, facts.branch * stream, final, facts.row.centred)

    def written(self, weight: torch.Tensor, factor: float, outputs: int = 0) -> torch.Tensor:
        """Return a weight that writes into the stream, in fp64; `outputs` is the dimension that runs over it."""
        wide = weight.double()
        return (wide - wide.mean(dim=outputs, keepdim=True) if self.centred else wide) * factor


def attention_tensors(
    heads: LatentHeads, known: Statistics, shape: HostShape, scaling: float, fold: Folding, norm: Linear
) -> dict[str, torch.Tensor]:
    """Return the tensors of the host's attention module but for a bias of its output, by their names in it, fp64.

    Args:
        heads: The fitted layer.
        known: Of its inputs: the latent is cached with rms 1 a channel.
        shape: Widths of the host.
        scaling: What the source multiplies scores with before the softmax.
        fold: What becomes of the output.
        norm: How small the latent is kept before its norm.
    """
    latent_CX, turning_RX, q_HEX = (one.double() for one in (heads.latent_CX, heads.turning_RX, heads.q_HEX))
    size_C = _sizes(known.of_values, latent_CX)
    order_R = torch.arange(shape.rotary, device=latent_CX.device).view(2, -1).T.flatten()  # half-split to interleaved
    up_HUC = torch.cat([heads.latent_lift_HCE.mT, heads.value_HFC], dim=1).double() * size_C
    down_NX = torch.cat([latent_CX / size_C[:, None] * norm.factor, turning_RX[order_R]])
    scale = scaling * (shape.width + shape.rotary) ** 0.5
    lift_HUE = heads.turning_lift_HRE.double()[:, order_R]
    return {
        **_queries(q_HEX * scale, lift_HUE, known.query_inputs, shape, norm),
        **_affine("kv_a_proj_with_mqa", down_NX, shape, norm),
        "kv_a_layernorm.weight": torch.full_like(size_C, norm.gain),
        "kv_b_proj.weight": up_HUC.flatten(0, 1),
        "o_proj.weight": fold.written(heads.o_HDF.transpose(0, 1).flatten(1), fold.branch),
    }


def _queries(
    q_HEX: torch.Tensor, lift_HRE: torch.Tensor, inputs: Metric, shape: HostShape, norm: Linear
) -> dict[str, torch.Tensor]:
    """Return the query projection; with biases, one that writes a latent of the queries, and one that reads it."""
    if shape.queries is None:
        return {
            "q_proj.weight": torch.cat([q_HEX, lift_HRE @ q_HEX], dim=1).flatten(0, 1)[:, : shape.inputs] * norm.lift
        }
    rows_ZX = q_HEX.flatten(0, 1)
    size_Z = _sizes(inputs, rows_ZX)
    even_HEE = torch.eye(shape.width, dtype=lift_HRE.dtype, device=lift_HRE.device).expand(len(q_HEX), -1, -1)
    lift_HUE = torch.cat([even_HEE, lift_HRE], dim=1)
    return {
        **_affine("q_a_proj", rows_ZX / size_Z[:, None] * norm.factor, shape, norm),
        "q_a_layernorm.weight": torch.full_like(size_Z, norm.gain),
        "q_b_proj.weight": torch.block_diag(*lift_HUE) * size_Z,
    }


def _affine(name: str, rows_NX: torch.Tensor, shape: HostShape, norm: Linear) -> dict[str, torch.Tensor]:
    """Return a projection; the constant 1 among the inputs, where there is one, meets the bias."""
    weight_ND, constant_NX = rows_NX[:, : shape.inputs] * norm.lift, rows_NX[:, shape.inputs :]
    if not shape.has_bias:
        return {f"{name}.weight": weight_ND}
    return {f"{name}.weight": weight_ND, f"{name}.bias": constant_NX.sum(dim=1)}


def _sizes(inputs: Metric, rows_NX: torch.Tensor) -> torch.Tensor:
    """Return the rms of what rows give, 1 for rows that give nothing, `[N]`."""
    size_N = inputs.like(rows_NX).energies(rows_NX).clamp(min=0).sqrt()
    return torch.where(size_N > 0, size_N, torch.ones_like(size_N))


def other_tensors(plan: Blueprint, facts: Facts, shape: HostShape, norm: Linear) -> Iterator[Recipe]:
    """Give the host's tensors outside of attention's projections, each with what it is made of.

    Names are those of both module trees; a fused projection of the source is cut.

    Args:
        plan: Blueprint of the source.
        facts: Of the source.
        shape: Widths of the host.
        norm: How small the latent is kept before its norm.
    """
    fold, names = Folding.of(facts), plan.module_shapes
    yield _written("model.embed_tokens.weight", fold, fold.embedding, outputs=1)
    yield _norm("model.norm.weight", facts, fold.final, beside="model.embed_tokens.weight")
    if not facts.tied:
        yield _same("lm_head.weight")
    for layer in range(facts.layers):
        block = f"model.layers.{layer}."
        for name, factor in (("input_layernorm", 1 / norm.lift), ("post_attention_layernorm", 1.0)):
            yield _norm(f"{block}{name}.weight", facts, factor, beside=f"{block}mlp.down_proj.weight")
        fused = f"{block}mlp.gate_up_proj.weight"
        for part, name in enumerate((f"{block}mlp.gate_proj.weight", f"{block}mlp.up_proj.weight")):
            is_fused = fused in names
            yield Recipe(name=name, sources=(fused,), make=partial(_half, part)) if is_fused else _same(name)
        yield _written(f"{block}mlp.down_proj.weight", fold, fold.branch)
        if shape.has_bias:
            yield _output_bias(f"{block}self_attn.o_proj", fold, names)


def _same(name: str) -> Recipe:
    return Recipe(name=name, sources=(name,))


def _written(name: str, fold: Folding, factor: float, outputs: int = 0) -> Recipe:
    if factor == 1 and not fold.centred:
        return _same(name)
    return Recipe(name=name, sources=(name,), make=partial(fold.written, factor=factor, outputs=outputs))


def _norm(name: str, facts: Facts, factor: float, beside: str) -> Recipe:
    if facts.row.centred:  # no gains of its own
        return Recipe(name=name, sources=(beside,), fill=factor)
    if factor == 1 and not facts.row.gain_offset:
        return _same(name)
    return Recipe(name=name, sources=(name,), make=lambda gain_D: (gain_D.double() + facts.row.gain_offset) * factor)


def _output_bias(projection: str, fold: Folding, names: Container[str]) -> Recipe:
    if f"{projection}.bias" in names:
        return _written(f"{projection}.bias", fold, fold.branch)
    return Recipe(name=f"{projection}.bias", sources=(f"{projection}.weight",), fill=0.0)


def _half(part: int, weight_ND: torch.Tensor) -> torch.Tensor:
    return weight_ND.chunk(2)[part].contiguous()
