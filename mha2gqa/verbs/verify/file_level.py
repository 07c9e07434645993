"""The file level of `verify`: every byte of a converted checkpoint is what the conversion must have made.

Tensors that the conversion copied are compared with the original's, changed ones are made again from it
where the method streams, and held against the record's checksum otherwise. The config may differ in
the recorded keys alone, the tokenizer and other small files not at all. No model is loaded.
"""

import copy
import filecmp
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mha2gqa.errors import CheckpointError, Mha2GqaError
from mha2gqa.files.pieces import OutputTensor, TensorInfo, whole
from mha2gqa.files.pool import Pool
from mha2gqa.files.reader import RECORD, Checkpoint, read_checkpoint, read_safetensors
from mha2gqa.methods import METHODS, demand, pooling
from mha2gqa.model.original import Original
from mha2gqa.progress import Advance
from mha2gqa.record.conversion import Conversion
from mha2gqa.record.pair import Pair, not_the_original
from mha2gqa.targets.plan import Plan, make_plan
from mha2gqa.verbs.verify.levels import FileLevel, Finding
from mha2gqa.verbs.verify.tensors import Compared, Expected, compare

_RECOMPUTABLE = {"groups", "method", "grouping", "seed", "heads"}
"""Options whose results follow from the original alone; any other that was used makes the record the only witness."""
_READ_BY_TOKENIZERS = ("tokenizer", "vocab", "merges", "added_tokens", "special_tokens", "chat_template", "spiece")
"""How the names of files begin whose presence alone changes a tokenizer."""
_ABSENT = object()


def check_files(pair: Pair, advance: Advance) -> FileLevel:
    """Compare the files of a converted checkpoint with its original and its record.

    Args:
        pair: The two.
        advance: Told of every run of bytes compared.

    Raises:
        PairError: The original is not the one that was converted.
        CheckpointError: The original is damaged.
    """
    started = time.monotonic()
    try:
        converted = read_checkpoint(pair.converted)
    except CheckpointError as error:
        return _result(pair, started, [_finding(_damaged_file(pair), error.problem)])
    plan = _plan(pair)
    findings = [
        *config_findings(pair, converted, plan),
        *companion_findings(pair.original, converted),
        *_header_findings(pair, converted, plan),
    ]
    expected = _expected(pair, converted, plan, {finding.guilty for finding in findings})
    total = sum(tensor.found.size for tensor in expected)
    pool = Pool(pooling(pair.conversion.method), int(pair.conversion.options.get("seed", 0)))
    results = compare(expected, pool, lambda size: advance(size, total))
    for tensor, result in zip(expected, results, strict=True):
        findings += _tensor_findings(pair, tensor, result)
    return _result(pair, started, findings, expected, files=len(pair.original.checkpoint.companions))


def _result(
    pair: Pair, started: float, findings: list[Finding], expected: list[Expected] | None = None, files: int = 0
) -> FileLevel:
    tensors = [tensor.made_of for tensor in expected or []]
    return FileLevel(
        readable=expected is not None,
        compared=sum(tensor is not None and _is_copy(pair, tensor) for tensor in tensors),
        recomputed=sum(tensor is not None and not _is_copy(pair, tensor) for tensor in tensors),
        checksummed=sum(tensor is None for tensor in tensors),
        files=files,
        size=sum(tensor.found.size for tensor in expected or []),
        seconds=time.monotonic() - started,
        findings=tuple(findings),
    )


def _is_copy(pair: Pair, tensor: OutputTensor) -> bool:
    """Return whether a tensor is one of the original's, byte for byte, and was not computed for another class."""
    return tensor.is_copy and tensor.name not in pair.original.origin.recomputed


def _damaged_file(pair: Pair) -> str:
    """Return the weight file that cannot be read, or the directory when each can."""
    for file in sorted(pair.converted.glob("*.safetensors")):
        try:
            read_safetensors(file)
        except CheckpointError:
            return file.name
    return str(pair.converted)


def _plan(pair: Pair) -> Plan | None:
    """Plan the recorded conversion again; None where its method needs more than the original."""
    conversion = pair.conversion
    if conversion.uptrain:
        return None
    used = {name for name, value in conversion.options.items() if value}
    # Targets that merge no heads say themselves, by `Computed` pieces, what needs more than the original.
    if conversion.method is not None and not (used <= _RECOMPUTABLE and _streams(conversion)):
        return None
    return make_plan(pair.original, pair.record.target)


def _streams(conversion: Conversion) -> bool:
    """Return whether options without a refinement made each tensor by itself, by a method that is still there."""
    method, grouping = str(conversion.method), str(conversion.options.get("grouping"))
    return method in METHODS and not demand(method, grouping, refine=None).whole_layers


def _header_findings(pair: Pair, converted: Checkpoint, plan: Plan | None) -> Iterator[Finding]:
    """Hold names, dtypes and shapes against the record, the plan and what transformers expects."""
    found = {info.name: info for info in converted.tensors}
    recorded = pair.record.tensors
    for name in sorted(recorded.keys() - found.keys()):
        yield _finding(name, "is missing; the record lists it")
    for name in sorted(found.keys() - recorded.keys()):
        yield _finding(name, "is not in the record")
    wanted = _wanted(pair, converted, plan)
    for name, info in found.items():
        dtype, shape = wanted.get(name, (info.dtype, info.shape))
        if (dtype, shape) != (info.dtype, info.shape):
            problem = f"has dtype {info.dtype} and shape {list(info.shape)}, not {dtype} and {list(shape)}"
            yield _finding(name, problem)


def _wanted(pair: Pair, converted: Checkpoint, plan: Plan | None) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the dtype and shape of each tensor: by the plan, else by transformers' class for the new config."""
    if plan is not None:
        return {tensor.name: (tensor.dtype, tensor.shape) for tensor in plan.tensors}
    dtypes = {info.name: info.dtype for info in pair.original.tensors}
    try:
        shapes = pair.result.spelling({info.name for info in converted.tensors})(pair.result.blueprint)
    except Mha2GqaError:  # a config that transformers rejects is a finding of the config's own
        return {}
    return {name: (dtypes[name], shape) for name, shape in shapes.items() if name in dtypes}


def _expected(pair: Pair, converted: Checkpoint, plan: Plan | None, guilty: set[str]) -> list[Expected]:
    planned = {tensor.name: tensor for tensor in plan.tensors if not tensor.is_computed} if plan else {}
    return [
        Expected(info, planned.get(info.name) if plan else _copied(info, pair))
        for info in converted.tensors
        if info.name not in guilty
    ]


def _copied(info: TensorInfo, pair: Pair) -> OutputTensor | None:
    """Return the original's tensor when the record says that it was copied."""
    found = pair.original.infos.get(info.name)
    return None if found is None or pair.record.tensors[info.name].changed else whole(found)


def _tensor_findings(pair: Pair, tensor: Expected, result: Compared) -> Iterator[Finding]:
    recorded = pair.record.tensors[result.name].checksum
    if result.first is None and result.checksum == recorded:
        return
    is_copy = tensor.made_of is not None and _is_copy(pair, tensor.made_of)
    if is_copy and result.first is not None and result.checksum == recorded:
        raise not_the_original(pair, result.name)
    yield _finding(result.name, _problem(pair, tensor, result, recorded))


def _problem(pair: Pair, tensor: Expected, result: Compared, recorded: str) -> str:
    if result.first is None:
        whose = "the recorded one" if tensor.made_of is None else "the recorded one, though its bytes are right"
        return f"has checksum {result.checksum}, not {whose} ({recorded})"
    place = _place(tensor.found, result.first)
    if tensor.made_of is not None and _is_copy(pair, tensor.made_of):
        return f"differs from the original's, first {place}"
    made = _made_by(pair, tensor.made_of)
    as_recorded = " (it is what the record says was written)" if result.checksum == recorded else ""
    return f"differs from {made}, first {place}{as_recorded}"


def _made_by(pair: Pair, made_of: OutputTensor | None) -> str:
    conversion = pair.conversion
    if made_of is not None and (made_of.is_copy or made_of.is_made):
        return f"what is computed of the original's for {conversion.model_type}"
    made = "the repetition" if conversion.method is None else f"the result of {conversion.method!r}"
    return f"{made} of the original's heads"


def _place(info: TensorInfo, offset: int) -> str:
    if len(info.shape) < 2:
        return f"at byte {offset} of {info.size}"
    return f"in row {offset // info.row_size} of {info.shape[0]}"


def companion_findings(original: Original, converted: Checkpoint) -> Iterator[Finding]:
    """Yield each file beside the weights that is missing, differs, or makes another tokenizer by being there."""
    beside = original.checkpoint.companions
    for companion in beside:
        before, after = original.directory / companion, converted.directory / companion
        if not after.is_file():
            yield _finding(companion, "is missing; the original has it")
        elif not filecmp.cmp(before, after, shallow=False):
            yield _finding(companion, "differs from the original's")
    added = original.origin.files
    for name, text in added.items():
        file = converted.directory / name
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            yield _finding(name, "is not what this version writes for the class")
    for companion in converted.companions:
        is_known = companion in beside or str(companion) in added
        if not is_known and companion.name.startswith(_READ_BY_TOKENIZERS):
            yield _finding(companion, "is not beside the original, and would change its tokenizer")


def _finding(guilty: str | Path, problem: str) -> Finding:
    return Finding(level="file", guilty=str(guilty), problem=problem)


def config_findings(pair: Pair, converted: Checkpoint, plan: Plan | None) -> Iterator[Finding]:
    """Yield each key of config.json that is not the original's with the recorded changes made to it.

    Args:
        pair: The two checkpoints and the record.
        converted: The converted checkpoint.
        plan: The conversion, planned again; None where it cannot be.
    """
    recorded = {tuple(change["path"]): change["after"] for change in pair.conversion.config_changes}
    if plan is not None and recorded != {change.path: change.after for change in plan.config_changes}:
        yield _finding(RECORD, "lists other changes of config.json than this conversion makes")
    expected = copy.deepcopy(pair.original.config_json)
    for path, value in recorded.items():
        holder = expected
        for key in path[:-1]:
            holder = holder.setdefault(key, {})
        holder[path[-1]] = value
        if value is None and _is_absent(converted.config, path):
            del holder[path[-1]]
    for path, wanted, found in _differences(expected, converted.config):
        name = ".".join(path)
        whose = "its recorded value" if path in recorded else "the original's"
        yield _finding(f"config.json: {name}", f"is {_show(found)}, not {whose}, {_show(wanted)}")


def _is_absent(config: Any, path: tuple[str, ...]) -> bool:
    for key in path:
        if not isinstance(config, dict) or key not in config:
            return True
        config = config[key]
    return False


def _differences(one: Any, other: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in dict.fromkeys((*one, *other)):
            yield from _differences(one.get(key, _ABSENT), other.get(key, _ABSENT), (*path, key))
    elif type(one) is not type(other) or one != other:
        yield path, one, other


def _show(value: Any) -> str:
    return "absent" if value is _ABSENT else repr(value)
