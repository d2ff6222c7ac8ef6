"""One run of `sohes pipeline`: phases 1 to 3 and the evaluation in order, and one summary.

Inputs and settings are checked before the first stage. A finished stage is recognized by its own files, so the same
command continues wherever it stopped; `pipeline.json` keeps duration and result of each stage.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import typer

from sohes_cli.errors import PartialFailure
from sohes_cli.labels.store import LabelStore
from sohes_cli.pipeline.checks import check_folders, check_same, check_settings, open_ground_truth
from sohes_cli.pipeline.evaluation import evaluation_settings, label_photographs, score_labels, write_image_list
from sohes_cli.pipeline.folder import PipelineFolder
from sohes_cli.pipeline.record import STAGES, PipelineRecord, StageRecord
from sohes_cli.pipeline.report import announce_stage, print_pipeline, print_pipeline_json
from sohes_cli.pipeline.stages import PipelineJob, StageWork, join_processes, run_phase
from sohes_cli.runs.devices import check_device
from sohes_cli.runs.interruption import StopRequest
from sohes_cli.training.distribution import any_process, by_main
from sohes_cli.training.metrics import read_metrics
from sohes_cli.training.phases import PHASES

if TYPE_CHECKING:
    from pathlib import Path

    from sohes_cli.pipeline.checks import GroundTruth
    from sohes_cli.pipeline.config import PipelineConfig
    from sohes_cli.pipeline.stages import PipelineInputs

__all__ = ["run_pipeline"]

_OF_A_CALL = ("images_per_second",)  # numbers of one call, not of the whole run
_STOPPING = "Stopping as soon as finished work is saved; Ctrl-C again stops at once."


def run_pipeline(
    inputs: PipelineInputs,
    out: Path,
    config: PipelineConfig,
    *,
    device: str = "auto",
    workers: int = -1,
    overwrite: bool = False,
    as_json: bool = False,
) -> bool:
    """Run the stages that are left, and sum up.

    Args:
        out: the folder of the pipeline, see `PipelineFolder`.
        device: `auto` or `cpu`.
        workers: processes beside this one; -1 chooses, 0 uses none.
        overwrite: remove the files of earlier pipelines first.
        as_json: print the summary as JSON.

    Returns:
        True if all is done; False after Ctrl-C or SIGTERM, where the same call, without `overwrite`, continues.

    Raises:
        UsageError: if an input or a setting is wrong, before anything is written.
        SohesError: if a stage cannot start or go on.
        PartialFailure: if photographs failed, after all else is done; in the main process.
    """
    check_device(device)
    job = PipelineJob(inputs, PipelineFolder(out), config, join_processes(device), device, workers, as_json)
    pipeline = _Pipeline(job)
    by_main(job.accelerator, lambda: pipeline.prepare(overwrite))
    stopped = pipeline.run()
    if not job.accelerator.is_main_process:
        return not stopped
    if as_json:
        print_pipeline_json(pipeline.record, job.folder, pipeline.stages, not stopped)
    elif not stopped:
        print_pipeline(pipeline.record, job.folder, pipeline.stages)
    if stopped:
        without = ", without --overwrite," if overwrite else ""
        typer.echo(f"The pipeline stopped {stopped}. Run the same command again{without} to continue.", err=True)
        return False
    pipeline.conclude()
    return True


class _Pipeline:
    """The stages of a run.

    Attributes:
        stages: stages to run, in order.
        record: their settings and results; valid in the main process.
    """

    def __init__(self, job: PipelineJob) -> None:
        self.stages = STAGES if job.inputs.truth else STAGES[:-1]
        self.record = PipelineRecord()
        self._job = job
        self._truth: GroundTruth | None = None  # in the main process

    def prepare(self, overwrite: bool) -> None:
        """Check inputs and settings, then open `pipeline.json`; the main process alone."""
        inputs, folder, config = self._job.inputs, self._job.folder, self._job.config
        check_folders(inputs.images, folder)
        if inputs.truth is not None:
            self._truth = open_ground_truth(inputs.truth, inputs.truth_images or inputs.images)
        if not overwrite:
            check_same(config, inputs.images, folder)
        check_settings(config, inputs.images, folder, self._job.accelerator, overwrite)
        if overwrite:
            folder.remove()
        self.record = _continued(self._job)
        self.record.write(folder.path)

    def run(self) -> str:
        """Run the stages; return where they stopped, or an empty string if all are done."""
        where = ""
        with StopRequest(_STOPPING) as stop:
            try:
                for number, stage in enumerate(self.stages, 1):
                    where = f"stage {number} of {len(self.stages)}, {stage}"
                    if self._job.accelerator.is_main_process:
                        announce_stage(where, stage, self._job)
                    if not self._run_stage(stage):
                        return f"in {where}"
                    if any_process(self._job.accelerator, stop.is_set()) and number < len(self.stages):
                        return f"after {where}"
            except KeyboardInterrupt:  # the second Ctrl-C
                return f"in {where}"
        return ""

    def conclude(self) -> None:
        """Raise a PartialFailure if photographs or labels failed."""
        counts = {stage: len(self.record.stages[stage].failed) for stage in self.stages}
        where = ", ".join(f"{count} in {stage}" for stage, count in counts.items() if count)
        if where:
            hint = "The summary says which and why; all else is done."
            raise PartialFailure(f"Some photographs or labels failed: {where}.", hint)

    def _run_stage(self, stage: str) -> bool:
        """Run a stage and record duration and result; return True if it is finished."""
        record, work, start = self.record.stages[stage], StageWork(), time.perf_counter()
        counts = not record.finished
        try:
            finished = self._evaluate(work) if stage == "evaluate" else run_phase(self._job, stage, work)
            work.gather()
            counts = counts or work.worked
            record.finished, record.failed = finished, work.failed
            if finished and (work.worked or not record.numbers) and self._job.accelerator.is_main_process:
                record.numbers = self._numbers(stage, work)
        finally:  # the time of a stage that failed counts, too
            if counts:
                record.seconds += time.perf_counter() - start
            if self._job.accelerator.is_main_process:
                self.record.write(self._job.folder.path)
        return finished

    def _evaluate(self, work: StageWork) -> bool:
        """Label the photographs of the ground truth and score the labels, unless it was done with the same settings."""
        job, truth, record = self._job, self._truth, self.record.stages["evaluate"]
        settings = evaluation_settings(job, truth) if truth else {}
        is_done = bool(truth) and record.finished and not record.failed and record.settings == settings
        if any_process(job.accelerator, is_done):
            return True
        by_main(job.accelerator, lambda: self._begin_evaluation(settings))
        if not label_photographs(job, work):
            return False
        by_main(job.accelerator, lambda: self._score(work))
        return True

    def _begin_evaluation(self, settings: dict[str, Any]) -> None:
        """Remove the labels of an earlier evaluation on other models or photographs, and list the photographs."""
        record, folder = self.record.stages["evaluate"], self._job.folder
        if record.settings and record.settings["labels"] != settings["labels"]:
            folder.remove_evaluation()
        if record.settings != settings:
            record.begin_anew(settings)
            self.record.scores = {}
        if self._truth is not None:
            write_image_list(self._job, self._truth)
        self.record.write(folder.path)

    def _score(self, work: StageWork) -> None:
        if self._truth is not None:
            self.record.scores = score_labels(self._job, self._truth, work)

    def _numbers(self, stage: str, work: StageWork) -> dict[str, Any]:
        """Collect the results of a stage from its files."""
        folder = self._job.folder
        if stage == "explore":
            masks = [len(record.annotations) for record in LabelStore(folder.labels)]
            return {"photographs": len(masks), "masks": sum(masks), "masks_per_image": sum(masks) / max(1, len(masks))}
        if stage == "evaluate":
            return {"photographs": len(self._truth.names) if self._truth else 0}
        lines = read_metrics(folder.run(stage))
        last = lines[-1] if lines else {}
        shown = {name: last[name] for name in PHASES[stage].shown if name in last and name not in _OF_A_CALL}
        return {"photographs": work.photographs, "steps": work.steps, **shown}


def _continued(job: PipelineJob) -> PipelineRecord:
    """Read the record of a pipeline, with the settings of this call, empty for stages that have not begun."""
    record = PipelineRecord.read(job.folder.path) or PipelineRecord()
    record.images = job.folder.relative(job.inputs.images)
    for stage, settings in job.config.of_stages().items():
        if not job.folder.has_begun(stage):
            record.stages[stage] = StageRecord()
        record.stages[stage].settings = settings
    return record
