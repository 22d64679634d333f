"""Puts the parts of the report together, as one HTML file."""

import html
import os
import platform
import re
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from string import Template

from proscale.predict.page import now, shared_parts
from proscale.report.charts import curve_charts
from proscale.report.images import images_html
from proscale.report.run_folder import CONFIG_FILE, RunFolder, read_run
from proscale.report.summary import summary_html
from proscale.report.tables import configuration_html, cost_html, evaluation_html, table
from proscale.utils.whole_files import write_text

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")


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
        OutputError: the file cannot be written.
    """
    run = read_run(run_dir)
    missing = list(run.missing)
    pictures = images_html(run, images, missing) if images else ""
    # Models of other architectures have a report without their cost.
    cost = ""
    if run.cfg is None:
        missing.append("The cost is not counted: there is no configuration of the model.")
    else:
        try:
            cost = cost_html(run.cfg)
        except (ValueError, KeyError, AttributeError) as error:
            missing.append(f"The cost of this model is not counted: {error}.")
    config_file = run_dir / CONFIG_FILE
    configuration = configuration_html(config_file) if config_file.is_file() else ""
    sections = [
        ("curves", "Curves", curve_charts(run.curves)),
        ("results", "Results", "".join(map(evaluation_html, run.evaluations))),
        ("images", "Best and worst images", pictures),
        ("cost", "Cost", cost),
        ("configuration", "Configuration", configuration),
        ("versions", "Versions and machine", _versions(run)),
    ]
    # Sections without content are left out, with their links.
    shown = [section for section in sections if section[2]]
    parts = []
    if run.cfg is not None:
        model = run.cfg.MODEL
        if model.META_ARCHITECTURE == "MaskFormer":
            parts.append(model.SEM_SEG_HEAD.PIXEL_DECODER_NAME)
        parts += [model.BACKBONE.NAME, *run.cfg.DATASETS.TRAIN]
    sentences = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in missing)
    notice = f'<div class="missing"><b>Missing on this page</b><ul>{sentences}</ul></div>'
    words = {
        "title": html.escape(run_dir.resolve().name),
        "subtitle": html.escape(" · ".join([*parts, f"reported {now()}"])),
        "summary": summary_html(run),
        "missing": notice if missing else "",
        "links": "".join(f'<a href="#{name}">{title}</a>' for name, title, _ in shown),
        "sections": "".join(
            f'<section id="{name}"><h2>{title}</h2>{content}</section>'
            for name, title, content in shown
        ),
        **shared_parts(),
    }
    # Written last and at once: a page of an earlier time stays if anything fails before.
    template = Template((files("proscale.report") / "report.html").read_text("utf-8"))
    # HTML has no control characters, which names in the run's files may have.
    write_text(output, _CONTROL.sub(lambda c: f"\\x{ord(c[0]):02x}", template.substitute(words)))
    return missing


def _versions(run: RunFolder) -> str:
    log = run.log
    rows = [("command line", log.command)] if log.command else []
    if log.first:
        rows.append(("log", f"{log.first} to {log.last}"))
    rows += log.environment.items()
    if run.weights is not None:
        rows.append(("weights", os.fspath(run.weights)))
    this = f"proscale {version('proscale')}, Python {platform.python_version()}"
    content = table(["what", "as logged"], [*rows, ("this page", this)])
    return f'<div class="panel"><div class="settings">{content}</div></div>'
