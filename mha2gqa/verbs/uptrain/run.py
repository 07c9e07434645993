"""`mha2gqa uptrain`: a converted checkpoint trained to win the original's quality back.

Runs in every process of a launcher (`torchrun`, `accelerate launch`); the main one prepares the text and writes.
"""

from dataclasses import replace
from pathlib import Path

from mha2gqa.files.pieces import whole
from mha2gqa.files.upload import check_account, push
from mha2gqa.pages.page import check_place, write_page
from mha2gqa.progress import QUIET, Progress
from mha2gqa.verbs.uptrain.options import UptrainOptions
from mha2gqa.verbs.uptrain.outcome import UptrainReport
from mha2gqa.verbs.uptrain.plan import Job, plan_job
from mha2gqa.verbs.uptrain.rates import choose_rate
from mha2gqa.verbs.uptrain.result import changed_tensors, load_trained, measure, unchanged, write_result
from mha2gqa.verbs.uptrain.text import TrainingText, prepare_text
from mha2gqa.verbs.uptrain.train import Finished, run
from mha2gqa.verbs.uptrain.workspace import training_workspace


def uptrain(options: UptrainOptions, progress: Progress = QUIET) -> UptrainReport | None:
    """Train a converted checkpoint.

    Args:
        options: What to train, on what, how long, and how.
        progress: Told of the preparation of text, and as events of the plan (kind `plan`), of each logged step
            (`training`) and of each measurement (`held-out`).

    Returns:
        What was done, or with `dry_run` what would be; None in all processes but the main one.

    Raises:
        Mha2GqaError: The request is refused, or a loss is not finite; no output has been written.
    """
    if options.report is not None:
        check_place(options.report)
    check_account(options.push_to_hub)
    job = plan_job(options)
    if options.dry_run:
        return job.report() if job.is_main else None
    job.load()
    with training_workspace(job.output, job.recipe, resume=options.resume, is_main=job.is_main) as work:
        with job.arguments.main_process_first(local=False, desc="reading the text"):  # all nodes see the workspace
            text = prepare_text(work, job.reading, job.original, progress)
        job.trials = choose_rate(job, text, progress.part("learning rate"))
        job.recipe["trainer"]["learning_rate"] = job.arguments.learning_rate
        if job.is_main:
            progress.event({"kind": "plan", **job.report(text).to_json()})
        finished = run(job, text, progress)
        report = _finish(job, text, finished, work) if job.is_main else None
    if report is None or options.push_to_hub is None:
        return report
    return replace(report, pushed=push(report.output, options.push_to_hub, private=options.private))


def _finish(job: Job, text: TrainingText, finished: Finished, work: Path) -> UptrainReport:
    """Write the output, measured as it is on disk, and report."""
    from mha2gqa.verbs.uptrain.page import loss_png, uptrain_page

    options, step = job.options, finished.step
    planned, losses = job.report(text), None
    if step:
        trained = load_trained(job.subject, finished.weights, is_adapter=options.train == "lora")
        losses = measure(trained, text, finished, job)
    if losses is None or (options.keep == "best" and not losses.after < losses.before):
        # Rounded to the file's dtype, a small gain may be none.
        step, losses = 0, unchanged(text, finished, job)
        tensors = tuple(map(whole, job.subject.converted.tensors))
    else:
        tensors = changed_tensors(job.subject, trained, work)
    report = replace(
        planned,
        written=True,
        losses=losses,
        history=finished.history,
        step=step,
        changed=sum(not tensor.is_copy for tensor in tensors),
        seconds=finished.seconds,
        tokens_per_second=finished.steps_here * (planned.step_tokens or 0) / max(finished.seconds, 1e-9),
    )
    write_result(job, tensors, report, loss_png(report))
    if options.report is not None:
        write_page(options.report, uptrain_page(report))
    return report
