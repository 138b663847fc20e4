"""Report of a run: `report.html`, one page that needs no other file, and its pictures as PNG files."""

from __future__ import annotations

import contextlib

from ... import plots
from ...display import image_grids
from ...learner import MetaGAN
from ...metrics import Evaluation
from ...tasks import Tasks
from ..outer_loop import Training
from ..run_folder import RunFolder
from ..trainer import VALIDATION_ROWS, Dispensable
from . import page, pictures


def write(folder: RunFolder, learner: MetaGAN, tasks: Tasks) -> None:
    """Write the report of a run in its folder; the learner is unchanged.

    Args:
        folder: the run's, with its configuration.
        learner: at the run's last meta-step.
        tasks: the run's data.

    Raises:
        FileExistsError: `report.html` is a user's own.
        CheckpointError: a file cannot be written.
        ValueError: the configuration is damaged.
    """
    folder.check_report()
    record = folder.read_config()
    training, shape = Training(**record["settings"]["training"]), tasks.image_shape
    shots = training.held_out_shots
    held_out = pictures.held_out(learner, tasks, shots)
    held_out_classes = min(training.validation_tasks, len(tasks.validation.classes))
    layout = pictures.GridLayout(
        pictures.class_names(tasks.validation, held_out_classes, shots),
        shots,
        VALIDATION_ROWS,
        shape[1:],
    )
    text = page.render(
        page.Contents(
            path=folder.path,
            record=record,
            step=learner.step,
            parameters=(pictures.size(learner.generator), pictures.size(learner.discriminator)),
            executor=learner.explain(training.shots).splitlines()[0].removeprefix("executor: "),
            lines=folder.read_metrics(),
            samples=pictures.sample_rows(folder.pictures(), layout),
            held_out=held_out,
            parts={"training": tasks.train, "validation": tasks.validation, "test": tasks.test},
            evaluation=folder.read_evaluation(),
        )
    )
    grids = {"adaptation": held_out.adaptation, "interpolation": image_grids.grid(held_out.interpolated)}
    pngs = {name: image_grids.grid_png(grid, shape[-1]) for name, grid in grids.items()}
    with contextlib.suppress(ValueError):  # none, or one of an earlier version
        pngs["evaluation"] = plots.evaluation(Evaluation.from_dict(folder.read_evaluation()))
    folder.write_report(text, pngs)


def write_if_possible(folder: RunFolder, learner: MetaGAN, tasks: Tasks) -> None:
    """Write the report; a failure, or Ctrl-C, leaves it out and is logged."""
    with Dispensable("all else is complete")(f"the report {folder.report}"):
        try:
            write(folder, learner, tasks)
        except KeyboardInterrupt:
            raise InterruptedError("Ctrl-C; `metagan-fast report` writes it") from None
