"""Puts the parts of the report together, as one HTML file."""

import html
import os
import platform
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from string import Template

from proscale.errors import RenderError
from proscale.predict.page import now, shared_parts
from proscale.report.charts import curve_charts
from proscale.report.evaluations import Evaluation, ImageMetric
from proscale.report.images import TASKS, ImagePairs, extremes
from proscale.report.run_folder import CONFIG_FILE, RunFolder, read_run
from proscale.report.summary import summary_html
from proscale.report.tables import Cell, changed_keys, cost_html, evaluation_html, plain
from proscale.utils.whole_files import whole_file


def write_report(run_dir: Path, output: Path, *, images: int) -> list[str]:
    """Write the page about a run.

    Args:
        run_dir: ``OUTPUT_DIR`` of a training or evaluation.
        output: the HTML file; its folder is there.
        images: best and as many worst ones of every data set; 0 shows none.

    Returns:
        a sentence for everything that is missing on the page.

    Raises:
        RunFolderError: ``run_dir`` is none.
        RenderError: the file cannot be written.
    """
    run = read_run(run_dir)
    missing = list(run.missing)
    sections = [
        ("curves", "Curves", curve_charts(run.curves)),
        ("results", "Results", "".join(map(_results, run.evaluations))),
        ("images", "Best and worst images", _images(run, images, missing) if images else ""),
        ("cost", "Cost", _cost(run, missing)),
        ("configuration", "Configuration", _configuration(run)),
        ("versions", "Versions and machine", _versions(run)),
    ]
    # Sections without content are left out, with their links.
    shown = [section for section in sections if section[2]]
    words = {
        "title": html.escape(run_dir.resolve().name),
        "subtitle": html.escape(_subtitle(run)),
        "summary": summary_html(run),
        "missing": _missing(missing),
        "links": "".join(f'<a href="#{name}">{title}</a>' for name, title, _ in shown),
        "sections": "".join(
            f'<section id="{name}"><h2>{title}</h2>{content}</section>'
            for name, title, content in shown
        ),
        **shared_parts(),
    }
    # Written last and at once: a page of an earlier time stays if anything fails before.
    template = Template((files("proscale.report") / "report.html").read_text("utf-8"))
    try:
        with whole_file(output) as part:
            part.write_text(template.substitute(words), encoding="utf-8")
    except OSError as error:
        raise RenderError(f"{output}: the report cannot be written: {error.strerror}") from error
    return missing


def _subtitle(run: RunFolder) -> str:
    parts = []
    if run.cfg is not None:
        model = run.cfg.MODEL
        if model.META_ARCHITECTURE == "MaskFormer":
            parts.append(model.SEM_SEG_HEAD.PIXEL_DECODER_NAME)
        parts += [model.BACKBONE.NAME, *run.cfg.DATASETS.TRAIN]
    return " · ".join([*parts, f"reported {now()}"])


def _missing(sentences: list[str]) -> str:
    if not sentences:
        return ""
    lines = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences)
    return f'<div class="missing"><b>Missing on this page</b><ul>{lines}</ul></div>'


def _heading(evaluation: Evaluation) -> str:
    dataset = f" <small>{html.escape(evaluation.dataset)}</small>" if evaluation.dataset else ""
    return f"<h3>{html.escape(evaluation.title)}{dataset}</h3>"


def _results(evaluation: Evaluation) -> str:
    return f'<div class="panel">{_heading(evaluation)}{evaluation_html(evaluation)}</div>'


def _images(run: RunFolder, count: int, missing: list[str]) -> str:
    parts = []
    # Views change predictions, and single images have no AP.
    scored = [e for e in run.evaluations if e.task in TASKS and not e.has_views]
    if run.evaluations and not scored:
        missing.append("Best and worst images: AP is not defined for single images.")
    for evaluation in scored:
        subject = f"Best and worst images of {evaluation.dataset}, {evaluation.title.lower()}"
        if not evaluation.images:
            missing.append(f"{subject}: the evaluation wrote no metrics of images.")
            continue
        # Without model or data set the page names the images.
        pairs = None
        try:
            pairs = ImagePairs(run, evaluation)
        except RenderError as error:
            missing.append(f"{subject}, are named only: {error}.")
        parts.append(_heading(evaluation))
        best, worst = extremes(evaluation.images, count)
        for title, chosen in (("Best", best), ("Worst", worst)):
            parts.append(f"<h4>{title}</h4>{_draw(pairs, chosen, evaluation, missing)}")
    return "".join(parts)


def _draw(
    pairs: ImagePairs | None, images: list[ImageMetric], evaluation: Evaluation, missing: list[str]
) -> str:
    """Images that can be drawn, and a table of the others."""
    rows: list[list[Cell]] = []
    drawn = []
    for image in images:
        # An image that cannot be read is named, and the others are drawn.
        try:
            if pairs is not None:
                drawn.append(f'<div class="pair">{"".join(pairs.draw(image))}</div>')
                continue
        except RenderError as error:
            missing.append(f"{Path(image.file_name).name} is not drawn: {error}.")
        rows.append([image.file_name, image.value])
    pictures = f'<div class="pairs">{"".join(drawn)}</div>' if drawn else ""
    return pictures + (plain(["image", evaluation.image_metric], rows) if rows else "")


def _cost(run: RunFolder, missing: list[str]) -> str:
    if run.cfg is None:
        missing.append("The cost is not counted: there is no configuration of the model.")
        return ""
    # Models of other architectures have a report without their cost.
    try:
        return f'<div class="panel">{cost_html(run.cfg)}</div>'
    except (ValueError, KeyError, AttributeError) as error:
        missing.append(f"The cost of this model is not counted: {error}.")
        return ""


def _configuration(run: RunFolder) -> str:
    path = run.path / CONFIG_FILE
    if not path.is_file():
        return ""
    changed = changed_keys(path)
    table = plain(["key", "value", "default"], changed) if changed else ""
    text = html.escape(path.read_text("utf-8", "replace"))
    return (
        f'<div class="panel"><h3>{len(changed)} keys that differ from the defaults</h3>'
        f'<div class="settings">{table}</div>'
        f"<details><summary>All of {CONFIG_FILE}</summary><pre>{text}</pre></details></div>"
    )


def _versions(run: RunFolder) -> str:
    log, rows = run.log, []
    if log.command:
        rows.append(["command line", log.command])
    if log.first:
        rows.append(["log", f"{log.first} to {log.last}"])
    rows += [[name, value] for name, value in log.environment.items()]
    if run.weights is not None:
        rows.append(["weights", os.fspath(run.weights)])
    rows.append(
        ["this page", f"proscale {version('proscale')}, Python {platform.python_version()}"]
    )
    return (
        f'<div class="panel"><div class="settings">{plain(["what", "as logged"], rows)}</div></div>'
    )
