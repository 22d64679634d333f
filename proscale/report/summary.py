"""The numbers at the top of the page: results, iterations, loss, time, memory."""

import html
import math
import statistics

from proscale.report.charts import evaluated, format_number
from proscale.report.run_folder import RunFolder

# Name, number and explanation; plain texts.
_Tile = tuple[str, str, str]


def summary_html(run: RunFolder) -> str:
    """The tiles at the top of the page."""
    tile = '<div class="tile"><span>{}</span><b>{}</b><small>{}</small></div>'
    tiles = [*_results(run), *_training(run)]
    return "".join(tile.format(*map(html.escape, texts)) for texts in tiles)


def _results(run: RunFolder) -> list[_Tile]:
    histories = evaluated(run.curves)
    tiles = []
    named = [(one, name) for one in run.evaluations for name in one.headlines]
    for evaluation, name in named:
        value = evaluation.metrics.get(name, math.nan)
        note = " on ".join(part for part in (evaluation.title, evaluation.dataset) if part)
        # Detectron2 leaves the data set out of a metric's name where there is only one.
        key = f"{evaluation.task}/{name}"
        history = histories.get(f"{evaluation.dataset}/{key}", histories.get(key, []))
        # Only evaluations without views are repeated during training.
        finite = [point for point in history if math.isfinite(point[1])]
        if len(finite) > 1 and not evaluation.has_views:
            # Of equal values the earliest iteration is shown.
            iteration, best = max(finite, key=lambda point: point[1])
            # The evaluation at the end is logged behind the last iteration.
            after = min(iteration + 1, run.steps)
            note += f"; best of {len(finite)}: {best:.1f} after {after:,} iterations"
        tiles.append((name, f"{value:.1f}", note))
    return tiles


def _training(run: RunFolder) -> list[_Tile]:
    if not run.steps:
        return []
    tiles = []
    whole = run.cfg.SOLVER.MAX_ITER if run.cfg is not None else None
    state = "complete" if whole and run.steps >= whole else "in progress or interrupted"
    if whole:
        tiles.append(("Iterations", f"{run.steps:,} of {whole:,}", state))
    else:
        tiles.append(("Iterations", f"{run.steps:,}", "logged"))
    # Steps are counted by the logged losses: there are some.
    first, last = (format_number(run.curves["total_loss"][place][1]) for place in (0, -1))
    tiles.append(("Total loss", last, f"{first} at first"))
    times = [(i, value) for i, value in run.curves.get("time", []) if math.isfinite(value)]
    if times:
        # The median: the first steps, and those after an evaluation, take longer.
        each = statistics.median(value for _, value in times)
        starts = f", started {run.log.starts} times" if run.log.starts > 1 else ""
        # Every logged time stands for the steps since the one before; iterations count from 0.
        before = [-1, *(iteration for iteration, _ in times)]
        total = sum((now - last) * v for (now, v), last in zip(times, before, strict=False))
        tiles.append(("Training time", _duration(total), f"{each:.3g} s a step{starts}"))
        # Of all ranks together: IMS_PER_BATCH is the size of the whole batch.
        if run.cfg is not None and each > 0:
            images = run.cfg.SOLVER.IMS_PER_BATCH
            note = f"in training, {images} a step"
            tiles.append(("Images a second", f"{images / each:.3g}", note))
    if run.log.peak_memory is not None:
        tiles.append(("Peak memory", f"{run.log.peak_memory / 1024:.1f} GiB", "of the device"))
    return tiles


def _duration(seconds: float) -> str:
    minutes, hours, days = seconds / 60, seconds / 3600, seconds / 86400
    if minutes < 1:
        return f"{seconds:.0f} s"
    if hours < 1:
        return f"{minutes:.0f} min"
    return f"{hours:.1f} h" if days < 2 else f"{days:.1f} days"
