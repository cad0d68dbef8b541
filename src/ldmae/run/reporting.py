"""The last stage of a run: its report."""

from __future__ import annotations

from pathlib import Path

from ldmae.core.files import read_json, write_json
from ldmae.evaluation.results import read_results
from ldmae.report.data import metrics_of
from ldmae.report.grids import save_png
from ldmae.report.run import overview, render_report
from ldmae.report.tables import metrics_table
from ldmae.run.plan import plan_trainings
from ldmae.run.run import Run


def describe_results(path: Path) -> str:
    """Returns the metrics in `results.json` as lines: name, value, direction, counts, remarks."""
    metrics = metrics_of({"results": read_results(path)})
    return metrics_table(metrics, "{:.4g}".format).terminal()


def report(run: Run) -> None:
    """Writes `report.html`, `overview.png` and `parameters.json` of what the run folder holds."""
    if run.main:
        path = run.folder / "diffusion" / "config.json"
        config = read_json(path, {"in_channels": int, "sample_size": int})
        shape, classes = (config["in_channels"], config["sample_size"]), len(run.train.classes)
        plans = plan_trainings(run.config, num_classes=classes, latent_shape=shape, initial=run.initial)
        counts = {plan.stage: {"total": plan.parameters, "trainable": plan.trainable} for plan in plans}
        own = {"autoencoder": counts[plans[0].stage], "diffusion": counts["diffusion"]}
        if run.config.autoencoder.source is not None:
            del own["autoencoder"]
        write_json(run.folder / "parameters.json", own)
        save_png(overview(run.folder), run.folder / "overview.png")
        render_report(run.folder)
