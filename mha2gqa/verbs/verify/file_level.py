"""The file level of `verify`: every byte of a converted checkpoint is what the conversion must have made.

What that is follows from the original (`expectation.py`): tensors that were copied are compared with it, merged ones
are made again, whatever the record claims. Where that cannot be, the record's checksum speaks, and the report says so.
The original itself is held against the record's checksums of what was converted. The config, the tokenizer and what
else lies beside the weights is `beside.py`'s. No model is loaded.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from mha2gqa.errors import CheckpointError, Mha2GqaError
from mha2gqa.files.pieces import OutputTensor, TensorInfo, path_of
from mha2gqa.files.pool import Pool
from mha2gqa.files.reader import RECORD, SAFE_INDEX, Checkpoint, read_checkpoint, read_json, read_safetensors
from mha2gqa.methods import streamed
from mha2gqa.progress import Advance
from mha2gqa.record.pair import Pair, not_the_original
from mha2gqa.record.record import source_checksums
from mha2gqa.verbs.verify.beside import companion_findings, config_findings, finding
from mha2gqa.verbs.verify.expectation import Expectation, expect, speaks_for
from mha2gqa.verbs.verify.levels import FileLevel, Finding
from mha2gqa.verbs.verify.tensors import Compared, Expected, compare


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
        return _result(pair, started, [finding(_damaged_file(pair), error.problem)])
    with tempfile.TemporaryDirectory() as folder:
        return _check(pair, converted, started, Path(folder), advance)


def _check(pair: Pair, converted: Checkpoint, started: float, folder: Path, advance: Advance) -> FileLevel:
    expectation = expect(pair, converted.tensors, folder)
    findings = [
        *(finding(RECORD, problem) for problem in expectation.problems),
        *config_findings(pair, converted, expectation.plan),
        *companion_findings(pair, converted),
        *_header_findings(pair, converted, expectation),
        *_index_findings(pair, converted),
    ]
    guilty = {one.guilty for one in findings}
    expected = [
        Expected(info, expectation.made_of(info, pair)) for info in converted.tensors if info.name not in guilty
    ]
    total = sum(tensor.found.size for tensor in expected)
    pool = Pool(streamed(expectation.method), int(pair.conversion.options.get("seed", 0) or 0))
    results = compare(expected, pool, lambda size: advance(size, total))
    _check_original(pair, expected, results)
    findings += _training_findings(pair, expectation, results)
    for tensor, result in zip(expected, results, strict=True):
        findings += _tensor_findings(pair, tensor, result, expectation)
    files = len(pair.original.checkpoint.companions)
    return _result(pair, started, findings, list(zip(expected, results, strict=True)), files=files)


def _result(
    pair: Pair,
    started: float,
    findings: list[Finding],
    results: Sequence[tuple[Expected, Compared]] | None = None,
    files: int = 0,
) -> FileLevel:
    tensors = [tensor.made_of if result.first is None else None for tensor, result in results or ()]
    bad = {one.guilty for one in findings}
    unknown = (result.name for (_, result), made in zip(results or (), tensors, strict=True) if made is None)
    checksummed = sum(name not in bad for name in unknown)
    return FileLevel(
        readable=results is not None,
        compared=sum(tensor is not None and _is_copy(pair, tensor) for tensor in tensors),
        recomputed=sum(tensor is not None and not _is_copy(pair, tensor) for tensor in tensors),
        checksummed=checksummed,
        files=files,
        size=sum(tensor.found.size for tensor, _ in results or ()),
        seconds=time.monotonic() - started,
        findings=tuple(findings),
        witness=_witness(pair, checksummed),
    )


def _witness(pair: Pair, checksummed: int) -> str:
    """Return what nothing but the record says."""
    said = speaks_for(pair.conversion, checksummed)
    if said and not pair.record.made_of:
        said += "; and it keeps no checksums of what they were made of"
    return said


def _check_original(pair: Pair, expected: Sequence[Expected], results: Sequence[Compared]) -> None:
    """Refuse an original whose tensors are not those that the record says the result was made of.

    Raises:
        PairError: One is another.
    """
    wanted = pair.record.made_of
    if not wanted:
        return
    copies = [tensor.made_of for tensor in expected if tensor.made_of is not None]
    found = source_checksums(pair.original.filed, copies, {result.name: result.expected for result in results})
    if wrong := sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name)):
        raise not_the_original(pair, wrong[0])


def _training_findings(pair: Pair, expectation: Expectation, results: Sequence[Compared]) -> Iterator[Finding]:
    """Hold the number of tensors that a training has changed against those that are not as the conversion left them."""
    runs = pair.conversion.uptrain
    said = runs[0].get("changed") if len(runs) == 1 else None
    is_known = expectation.is_remade or not any(one.is_computed for one in expectation.planned.values())
    if isinstance(said, int) and is_known:
        changed = sum(result.first is not None and result.name in expectation.by_record for result in results)
        if changed != said:
            yield finding(RECORD, f"says that a training changed {said} tensors, and {changed} were changed")


def _is_copy(pair: Pair, tensor: OutputTensor) -> bool:
    """Return whether a tensor is one of the original's, byte for byte, and was not computed for another class."""
    return tensor.is_copy and tensor.name not in pair.original.origin.recomputed


def _damaged_file(pair: Pair) -> str:
    """Return the file that cannot be read, or the directory when each can."""
    for file in sorted(pair.converted.glob("*.safetensors")):
        try:
            read_safetensors(file)
        except CheckpointError:
            return file.name
    for name in ("config.json", SAFE_INDEX):
        try:
            read_json(pair.converted / name)
        except CheckpointError:
            if name == "config.json" or (pair.converted / name).is_file():
                return name
    return str(pair.converted)


def _header_findings(pair: Pair, converted: Checkpoint, expectation: Expectation) -> Iterator[Finding]:
    """Hold names, dtypes and shapes against the record, the plan and what transformers expects."""
    found = {info.name: info for info in converted.tensors}
    recorded = pair.record.tensors
    planned = expectation.planned
    for name in sorted((recorded.keys() | planned.keys()) - found.keys()):
        yield finding(name, "is missing; the record lists it" if name in recorded else "is missing")
    for name in sorted(found.keys() - recorded.keys()):
        yield finding(name, "is not in the record")
    for name in sorted((found.keys() & recorded.keys()) - planned.keys()) if planned else ():
        yield finding(name, "is nothing that this conversion makes")
    wanted = _wanted(pair, converted, expectation)
    for name, info in found.items():
        dtype, shape = wanted.get(name, (info.dtype, info.shape))
        if (dtype, shape) != (info.dtype, info.shape):
            problem = f"has dtype {info.dtype} and shape {list(info.shape)}, not {dtype} and {list(shape)}"
            yield finding(name, problem)


def _index_findings(pair: Pair, converted: Checkpoint) -> Iterator[Finding]:
    """Hold the index against the files: what it names is there, and where it says, or it would not have been read."""
    path = converted.directory / SAFE_INDEX
    if not path.is_file() or {info.name for info in converted.tensors} != pair.record.tensors.keys():
        return
    content = read_json(path)
    for info in converted.tensors:
        if info.name not in content["weight_map"]:
            yield finding(SAFE_INDEX, f"does not name {info.name}, which is in {path_of(info.file).name}")
    metadata, size = content.get("metadata"), sum(info.size for info in converted.tensors)
    if not isinstance(metadata, dict):
        yield finding(SAFE_INDEX, "has no `metadata`, without which transformers does not read it")
    elif metadata.get("total_size") != size:
        yield finding(SAFE_INDEX, f"says total_size {metadata.get('total_size')}, and its tensors have {size} bytes")


def _wanted(pair: Pair, converted: Checkpoint, expectation: Expectation) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the dtype and shape of each tensor: by the plan, else by transformers' class for the new config."""
    if expectation.plan is not None:
        return {tensor.name: (tensor.dtype, tensor.shape) for tensor in expectation.plan.tensors}
    dtypes = {info.name: info.dtype for info in pair.original.tensors}
    try:
        shapes = pair.result.spelling({info.name for info in converted.tensors})(pair.result.blueprint)
    except Mha2GqaError:  # a config that transformers rejects is a finding of the config's own
        return {}
    return {name: (dtypes[name], shape) for name, shape in shapes.items() if name in dtypes}


def _tensor_findings(pair: Pair, tensor: Expected, result: Compared, expectation: Expectation) -> Iterator[Finding]:
    recorded = pair.record.tensors[result.name].checksum
    if result.checksum == recorded and (result.first is None or result.name in expectation.by_record):
        return
    is_copy = tensor.made_of is not None and _is_copy(pair, tensor.made_of)
    if is_copy and result.first is not None and result.checksum == recorded and not pair.record.made_of:
        raise not_the_original(pair, result.name)
    yield finding(result.name, _problem(pair, tensor, result, expectation))


def _problem(pair: Pair, tensor: Expected, result: Compared, expectation: Expectation) -> str:
    recorded = pair.record.tensors[result.name].checksum
    if result.first is None or result.name in expectation.by_record:
        is_made_again = result.first is None and tensor.made_of is not None
        whose = f"the recorded one{', though its bytes are right' * is_made_again}"
        return f"has checksum {result.checksum}, not {whose} ({recorded})"
    place = _place(tensor.found, result.first)
    if tensor.made_of is not None and _is_copy(pair, tensor.made_of):
        return f"differs from the original's, first {place}"
    made = _made_by(pair, tensor.made_of, expectation.method)
    as_recorded = " (it is what the record says was written)" if result.checksum == recorded else ""
    return f"differs from {made}, first {place}{as_recorded}"


def _made_by(pair: Pair, made_of: OutputTensor | None, method: str | None) -> str:
    if made_of is not None and (made_of.is_copy or made_of.is_made):
        return f"what is computed of the original's for {pair.conversion.model_type}"
    made = f"the result of {method or pair.conversion.way!r}" if pair.conversion.method else "the repetition"
    return f"{made} of the original's heads"


def _place(info: TensorInfo, offset: int) -> str:
    if len(info.shape) < 2:
        return f"at byte {offset} of {info.size}"
    return f"in row {offset // info.row_size} of {info.shape[0]}"
