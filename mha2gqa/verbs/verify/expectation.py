"""What a converted checkpoint must be, by its original: planned again, whatever its record claims.

The record says what was asked for (how many KV heads, by which method) and no more is taken from it: the plan, and with
it every tensor that is a copy and every one that a pooling made, follows from the original. Only where a layer method
or a training made a tensor can nothing but the record's checksum speak for it. Which ones those can be follows from the
original as well (`Expectation.by_record`); what is neither is a finding, and a record that says that heads were merged
by a method whose result they are not (`_contradicted`) is one, too.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from mha2gqa.errors import FamilyError, GroupsError
from mha2gqa.families.counts import FORMER_KEYS
from mha2gqa.files.pieces import OutputTensor, TensorInfo, whole
from mha2gqa.methods import AUTO, METHODS, demand
from mha2gqa.model.layers import LayerFiles
from mha2gqa.record.conversion import Conversion
from mha2gqa.record.pair import Pair
from mha2gqa.targets.plan import Plan, make_plan
from mha2gqa.verbs.verify.telling import remake, told_by_heads


@dataclass(frozen=True, eq=False)
class Expectation:
    """What the converted checkpoint must be."""

    plan: Plan | None
    """None where the original cannot have what the record says that it became."""
    method: str | None
    """The pooling by which merged heads are made again."""
    by_record: frozenset[str]
    """Tensors that a layer method or a training may have made, for which the record's checksums speak."""
    problems: tuple[str, ...]
    """What the record says that cannot be."""
    is_remade: bool = False
    """Whether the layers of a layer method were made again."""

    def made_of(self, info: TensorInfo, pair: Pair) -> OutputTensor | None:
        """Return what a tensor must be made of; None where that cannot be made again."""
        if self.plan is None:
            found = pair.original.infos.get(info.name)
            return None if found is None or pair.record.tensors[info.name].changed else whole(found)
        planned = self.planned.get(info.name)
        is_known = self.is_remade or planned is None or not planned.is_computed
        return planned if is_known else None

    @cached_property
    def planned(self) -> dict[str, OutputTensor]:
        """The tensors of the plan by their names."""
        return {} if self.plan is None else {tensor.name: tensor for tensor in self.plan.tensors}


def expect(pair: Pair, tensors: Sequence[TensorInfo], directory: Path) -> Expectation:
    """Plan the conversion of a pair again.

    Args:
        pair: The original, and what the record says that was done to it.
        tensors: Of the converted checkpoint.
        directory: Where layers may be made again; what is expected lies there afterwards.
    """
    conversion = pair.conversion
    try:
        plan = make_plan(pair.original, pair.record.target)
    except (GroupsError, FamilyError) as error:
        return Expectation(None, None, frozenset(), (f"tells of what this original cannot become: {error.problem}",))
    method = conversion.method if _streams(conversion) else None
    trained = frozenset(_trained(pair)) if conversion.uptrain else frozenset()
    if method is not None or not plan.changed or conversion.command == "expand":
        return Expectation(plan, method, trained, tuple(_contradictions(pair, plan, is_known=True)))
    if fitted := {
        tensor.name for tensor in plan.tensors if tensor.is_computed
    }:  # no heads were merged: those of latents
        return Expectation(plan, None, trained | fitted, tuple(_contradictions(pair, plan, is_known=True)))
    told = told_by_heads(plan, tensors, conversion)
    if told is not None:
        problem = f"says that the method was {conversion.way!r}, and heads are the result of {told!r}"
        is_free = any({layer.keys, layer.values} != {"fixed"} for layer in plan.aim.layers())
        is_true = told == conversion.method or not (is_free or conversion.refinement)
        return Expectation(plan, told, trained, () if is_true else (problem,))
    remade = remake(plan, tensors, conversion, directory)
    if remade is not None:
        plan, said = remade
        problems = (f"says that the method was {conversion.way!r}, and layers are the result of {said!r}",)
        is_true = said == conversion.method  # a refinement that gained nothing anywhere leaves what was merged
        problems = (*(() if is_true else problems), *_contradictions(pair, plan, is_known=True))
        return Expectation(plan, None, trained, problems, is_remade=True)
    plan = _with_layers(plan)
    made = {tensor.name for tensor in plan.tensors if not tensor.is_copy}
    return Expectation(plan, None, trained | made, tuple(_contradictions(pair, plan, is_known=False)))


def _streams(conversion: Conversion) -> bool:
    """Return whether a method that is still there made each tensor by itself; further options make no difference."""
    method, options = str(conversion.method), conversion.options
    if method not in METHODS:
        return False
    return not demand(method, str(options.get("grouping", "contiguous")), options.get("refine")).whole_layers


def _contradictions(pair: Pair, plan: Plan, *, is_known: bool) -> Iterator[str]:
    """Yield what the record says otherwise than the plan that follows from the original."""
    conversion = pair.conversion
    if conversion.change.numbers() != plan.change.numbers():
        yield "tells of another change of attention than that of the two configs"
    recorded = {tuple(one["path"]): one["after"] for one in conversion.config_changes}
    former = {change.path for change in plan.config_changes if change.path[-1] in FORMER_KEYS} - recorded.keys()
    if recorded != {change.path: change.after for change in plan.config_changes if change.path not in former}:
        yield "lists other changes of config.json than this conversion makes"
    if conversion.model_type != plan.result.model_type:
        made = plan.result.model_type
        yield f"says that the result is of class {conversion.model_type!r}, and this conversion makes {made!r}"
    if conversion.method is not None and not conversion.asks_for_heads:
        yield f"says that heads were merged by {conversion.method!r}, and this conversion merges none"
    if {*conversion.dropped} != {*plan.pieces.dropped}:
        yield "lists other tensors that were left out than this conversion leaves out"
    if is_known and not conversion.uptrain:
        changed = {name for name, one in pair.record.tensors.items() if one.changed}
        if wrong := sorted(changed - {tensor.name for tensor in plan.changed}):
            yield f"says that {wrong[0]} was changed, which this conversion copies"
        if conversion.groups != plan.groups:
            yield "lists other groups of heads than this conversion makes"


def _with_layers(plan: Plan) -> Plan:
    """Return the plan with the layers that a layer method changes, of which names and shapes are known, not bytes."""
    files = LayerFiles(plan.original, Path())
    return plan.with_layers([files.planned(layer) for layer in plan.aim.layers() if files.is_complete(layer)])


def _trained(pair: Pair) -> Iterator[str]:
    """Yield the tensors that the trainings of the record may have changed."""
    model, names = pair.original, {*pair.record.tensors}
    if any(run.get("train") == "all" for run in pair.conversion.uptrain):
        yield from names
        return
    outline, spelling = pair.result.outline, model.spelling
    for module in pair.result.attention_modules:
        parameters = outline.get_submodule(module).named_parameters()
        state = {f"{module}.{name}": torch.empty_like(one, device="meta") for name, one in parameters}
        yield from spelling.write(pair.result.blueprint, state)


def speaks_for(conversion: Conversion, count: int) -> str:
    """Return what only the record's checksums speak for, as a sentence without its stop; empty for nothing.

    Args:
        conversion: What the record says.
        count: Tensors that could not be made again.
    """
    if not count:
        return ""
    why = f"{conversion.way or 'what text has fitted'} cannot be made again from the original alone"
    if conversion.method in (*METHODS, AUTO) and conversion.uptrain:
        why = "a training made them"
    return f"Only the record's checksums speak for {count} tensor{'s' * (count > 1)}: {why}"
