"""`mha2gqa verify`: a converted checkpoint held against its original: its files, its behaviour, its outputs."""

from collections.abc import Callable
from functools import partial

from mha2gqa.evaluation.file_level import check_files
from mha2gqa.evaluation.judge import judge, limits_for
from mha2gqa.evaluation.load_level import check_loading
from mha2gqa.evaluation.loading import Models
from mha2gqa.evaluation.outputs_level import compare_outputs, find_text
from mha2gqa.evaluation.pair import describe, find_pair
from mha2gqa.evaluation.results import Verification
from mha2gqa.options import VerifyOptions

Progress = Callable[[str, int, int], object]
"""Told what is being done, how much of it was done since the last call, and how much there is in all."""


def ignore_progress(stage: str, size: int, total: int) -> None:
    """Take note of nothing."""


def verify(options: VerifyOptions, progress: Progress = ignore_progress) -> Verification:
    """Verify a converted checkpoint against its original.

    Args:
        options: What to verify, on which text, within which limits.
        progress: Told of every run of bytes and every batch of tokens.

    Returns:
        What was found, and the verdict.

    Raises:
        Mha2GqaError: It cannot be verified: something is missing, or the two do not belong together.
    """
    pair = find_pair(options.converted, options.against)
    models = Models(pair, dtype=options.dtype, device=options.device)
    limits = limits_for(pair.written.record, options)
    text = find_text(models, options) if "outputs" in options.levels else None
    file = check_files(pair, partial(progress, "files")) if "file" in options.levels else None
    readable = file is None or file.readable
    load = check_loading(models, options.seed) if "load" in options.levels and readable else None
    outputs = None
    if text is not None and readable and (load is None or models.converted is not None):
        outputs = compare_outputs(models, text, limits, options, partial(progress, "outputs"))
    verdict, reasons = judge(file, load, outputs, wanted_outputs=text is not None)
    return Verification(
        conversion=describe(pair),
        limits=limits,
        verdict=verdict,
        reasons=reasons,
        file=file,
        load=load,
        outputs=outputs,
    )
