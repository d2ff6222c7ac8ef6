"""Output of `sohes pipeline`: a line a stage on stderr, and at the end tables, or one JSON object, on stdout."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

import typer

from sohes_cli.errors import printable
from sohes_cli.evaluation.average_recall import RANKS
from sohes_cli.model.location import MODEL_NAME
from sohes_cli.runs.labeling import counted
from sohes_cli.training.phases import PHASES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from sohes_cli.pipeline.folder import PipelineFolder
    from sohes_cli.pipeline.record import PipelineRecord, StageRecord
    from sohes_cli.pipeline.stages import PipelineJob

__all__ = ["announce_stage", "print_pipeline", "print_pipeline_json"]

_SHOWN_FAILURES = 5
_PHASES = ("explore", *PHASES)
_WIDEST = 1000
_SCORES = (
    *((f"AR@{k}", "all_images", f"ar_{k}") for k in RANKS),
    ("part-of recall", "hierarchy", "part_of_recall"),
    ("link precision", "hierarchy", "link_precision"),
)


def announce_stage(where: str, stage: str, job: PipelineJob) -> None:
    """Print that a stage begins; `where` is its number and name, as in `stage 2 of 4, instruct`."""
    config, images = job.config, printable(job.inputs.images)
    task = {
        "explore": f"masks and their forest for each photograph in {images}, by {config.explore.features.backbone}",
        "instruct": f"a model learns from these labels, {config.instruct.optimizer.steps} steps",
        "correct": f"a teacher and its student go on from this model, {config.correct.optimizer.steps} steps",
        "evaluate": f"labels of each phase on the photographs of {printable(job.inputs.truth)} are scored",
    }
    typer.echo(f"{where[0].upper()}{where[1:]}: {task[stage]}.", err=True)


def print_pipeline_json(record: PipelineRecord, folder: PipelineFolder, stages: Sequence[str], finished: bool) -> None:
    """Print duration and result of the stages of a call, and the scores, as one JSON object."""
    summary = {
        "pipeline": str(folder.path),
        "finished": finished,
        "model": str(folder.run("correct") / MODEL_NAME) if record.stages["correct"].finished else None,
        "stages": {stage: record.stages[stage].summary() for stage in stages},
        "scores": record.scores if "evaluate" in stages else None,
    }
    typer.echo(json.dumps(summary))  # in ASCII, so that no locale can fail it


def print_pipeline(record: PipelineRecord, folder: PipelineFolder, stages: Sequence[str]) -> None:
    """Print the tables of a finished pipeline, its failures, and the next command."""
    from rich.console import Console

    console = Console(highlight=False)
    for table in (_stage_table(record, stages), *([_score_table(record)] if "evaluate" in stages else [])):
        width = console.measure(table, options=console.options.update(max_width=_WIDEST)).maximum
        console.width = max(console.width, width)  # rather a long line than cut numbers
        console.print(table)
    for stage in stages:
        _print_failures(stage, record.stages[stage])
    run = folder.run("correct")
    typer.echo(f"The model is {run / MODEL_NAME}.")
    typer.echo(f"Next: sohes segment IMAGE --tree --checkpoint {shlex.quote(str(run))}")


def _stage_table(record: PipelineRecord, stages: Sequence[str]) -> Table:
    from rich.table import Table

    table = Table()
    for column in ("stage", "what", "result"):
        table.add_column(column)
    table.add_column("time", justify="right")
    for stage in stages:
        there = record.stages[stage]
        failed = f", {len(there.failed)} failed" if there.failed else ""
        table.add_row(stage, _amount(there.numbers), _result(stage, record) + failed, _duration(there.seconds))
    return table


def _amount(numbers: dict[str, Any]) -> str:
    steps = f", {numbers['steps']} steps" if "steps" in numbers else ""
    return f"{counted(numbers['photographs'], 'photograph')}{steps}"


def _result(stage: str, record: PipelineRecord) -> str:
    numbers = record.stages[stage].numbers
    if stage == "explore":
        return f"{numbers['masks_per_image']:.1f} masks an image"
    if stage == "evaluate":
        return f"scores of {len(record.scores)} of {len(_PHASES)} phases"
    forms = {"loss": "loss {:.3g}", "teacher_labels": "{:.1f} teacher labels an image"}
    return ", ".join(form.format(numbers[name]) for name, form in forms.items() if numbers.get(name) is not None)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def _score_table(record: PipelineRecord) -> Table:
    """Make the table of the scores in percent, a column for each phase."""
    from rich.table import Table

    table = Table()
    table.add_column("percent")
    for phase in _PHASES:
        table.add_column(phase, justify="right")
    for label, group, key in _SCORES:
        values = [(record.scores.get(phase, {}).get(group) or {}).get(key) for phase in _PHASES]
        table.add_row(label, *("-" if value is None else f"{100 * value:.1f}" for value in values))
    masks = [record.scores.get(phase, {}).get("masks_per_image") for phase in _PHASES]
    table.add_row("masks an image", *("-" if value is None else f"{value:.1f}" for value in masks))
    return table


def _print_failures(stage: str, record: StageRecord) -> None:
    for message in record.failed[:_SHOWN_FAILURES]:
        typer.echo(f"Failed in {stage}: {message}")
    if len(record.failed) > _SHOWN_FAILURES:
        typer.echo(f"... and {len(record.failed) - _SHOWN_FAILURES} more in {stage}.")
