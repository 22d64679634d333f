"""The whole page: of complete runs, and of incomplete ones."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from PIL import Image

from proscale.errors import RunFolderError
from proscale.report import page, write_report
from proscale.report.evaluations import ImageMetric, read_evaluations
from proscale.report.images import extremes


@pytest.fixture
def report(tmp_path):
    """Returns a function: folder and images → the page, and its list of missing parts."""

    def make(run, images=1):
        output = tmp_path / "page.html"
        missing = write_report(run, output, images=images)
        return output.read_text("utf-8"), missing

    return make


@pytest.fixture
def no_cost(monkeypatch):
    """Saves the seconds that counting takes."""
    monkeypatch.setattr(page, "cost_html", lambda cfg: "cost")


def sections(text):
    return re.findall(r'<section id="(\w+)">', text)


def pairs(text, metric):
    """Numbers of predictions with a metric, and of annotations."""
    scored = re.findall(rf'class="file">{metric} \d+\.\d · ', text)
    return len(scored), text.count('class="file">truth · ')


def test_a_complete_run(make_run, report):
    text, missing = report(make_run())
    assert missing == []
    assert sections(text) == ["curves", "results", "images", "cost", "configuration", "versions"]
    assert "<h1>&lt;run&gt; &amp; 1</h1>" in text and "<run>" not in text
    assert "2.0 GiB" in text and "2 of 40,000" in text
    assert pairs(text, "PQ") == (2, 2)  # the best and the worst
    assert "GFLOPs</b>" in text
    assert "MODEL.SWIN.EMBED_DIM" in text and "<td>96</td>" in text  # with its default
    assert not re.search(r"https?://(?!www\.w3\.org)|@import|url\(", text)
    assert re.findall(r' src="(?!data:image/jpeg;base64,)', text) == []


def test_code_in_the_weights_is_not_run(make_run, report, no_cost, tmp_path):
    """The configuration in the folder of somebody else asks for trust in what lies beside it."""
    run, trace = make_run(), tmp_path / "trace"

    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(trace),)

    torch.save({"model": {}, "meta": Harmful()}, run / "model_final.pth")
    file = run / "config.yaml"
    file.write_text(file.read_text().replace("TRUST_WEIGHTS: false", "TRUST_WEIGHTS: true"))
    assert any("because it has posix.mkdir in it" in sentence for sentence in report(run)[1])
    assert not trace.exists()


def test_a_semantic_run(make_run, report, no_cost):
    text, missing = report(make_run("semantic"))
    assert missing == []
    assert pairs(text, "mIoU") == (2, 2)


def test_every_image_has_a_metric(make_run):
    run = make_run()
    (evaluation,), _ = read_evaluations(run)
    assert len(evaluation.images) == 2
    files = [entry["file_name"] for entry in DatasetCatalog.get(evaluation.dataset)]
    assert [image.file_name for image in evaluation.images] == files
    assert all(0 <= image.value <= 100 for image in evaluation.images)


def test_without_weights_images_are_named(make_run, report, no_cost):
    run = make_run()
    (run / "model_final.pth").unlink()
    text, missing = report(run)
    assert len(missing) == 1 and "no weights in the folder" in missing[0]
    assert "000001.jpg" in text and 'class="pair"' not in text


def test_an_image_that_is_gone(make_run, report, no_cost):
    run = make_run()
    (evaluation,), _ = read_evaluations(run)
    best, _ = extremes(evaluation.images, 1)
    Path(best[0].file_name).unlink()
    text, missing = report(run)
    assert len(missing) == 1 and "is not drawn" in missing[0]
    assert text.count('class="pair"') == 1


def test_weights_of_another_model(make_run, report, no_cost):
    run = make_run()
    (run / "model_final.pth").write_bytes(b"no checkpoint")
    text, missing = report(run)
    assert len(missing) == 1 and "model_final.pth" in missing[0]
    assert "cost" in sections(text)


def test_no_images_are_asked_for(make_run, report, no_cost):
    text, missing = report(make_run(), images=0)
    assert missing == [] and "images" not in sections(text)


def test_a_run_that_goes_on(tmp_path, report):
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.json").write_text('{"iteration": 19, "total_loss": NaN}\n{"iter')
    text, missing = report(run)
    assert sections(text) == ["curves", "versions"]
    assert "1 not finite" in text
    assert any("damaged lines of metrics.json are left out: 2." in line for line in missing)
    assert any("no results" in line for line in missing)
    assert any("config.yaml" in line for line in missing)


def test_a_configuration_of_another_version(make_run, report):
    run = make_run()
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text + "NEW_KEY: <b>\n")
    text, missing = report(run)
    assert "NEW_KEY" in missing[0]
    assert "results" in sections(text) and "cost" not in sections(text)
    assert "NEW_KEY: &lt;b&gt;" in text


@pytest.mark.parametrize("name", ["empty", "absent"])
def test_no_run(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunFolderError, match=r"expected the OUTPUT_DIR .* config\.yaml"):
        write_report(tmp_path / name, tmp_path / "page.html", images=1)
    assert not (tmp_path / "page.html").exists()


def test_extremes():
    images = [ImageMetric(f"{i}", float(value)) for i, value in enumerate([5, 1, np.nan, 9, 3])]
    best, worst = extremes(images, 2)
    assert [image.value for image in best] == [9, 5]
    assert [image.value for image in worst] == [1, 3]
    best, worst = extremes(images, 9)
    assert sorted(image.value for image in best + worst) == [1, 3, 5, 9]
    assert extremes(images[:1], 3) == (images[:1], [])


def results_of(run):
    """The files of a run's evaluation: the images', the classes', and all metrics'."""
    (images,) = run.glob("inference/*/panoptic_seg_images.json")
    return images, images.with_name("panoptic_seg.json"), run / "results.json"


def test_images_of_others_are_not_shown(make_run, report, no_cost, tmp_path):
    """A results file of somebody else may name any file; the page may be sent on."""
    run = make_run()
    secret = tmp_path / "secret.png"
    Image.new("RGB", (64, 48), (255, 0, 0)).save(secret)
    images, *_ = results_of(run)
    images.write_text(json.dumps({"images": [{"file_name": str(secret), "PQ": 100.0}] * 2}))
    text, missing = report(run)
    assert 'class="pair"' not in text
    assert [line for line in missing if "secret.png is not drawn: the data set" in line]


AWKWARD_NAMES = ["a\0b", "\ud800", "\x1b[31m", "../../etc", "/etc", "a" * 5000, "<script>", "", " "]


@pytest.mark.parametrize("name", AWKWARD_NAMES)
def test_awkward_names(make_run, report, no_cost, name):
    run = make_run()
    images, classes, results = results_of(run)
    images.write_text(json.dumps({"images": [{"file_name": name, "PQ": 1.0}] * 3}))
    classes.write_text(json.dumps({"per_category": [{"id": 1, "name": name, "pq": 1.0}]}))
    text, missing = report(run)
    assert "\0" not in text and "\x1b" not in text and "<script>" not in missing
    assert sum("is not drawn" in line for line in missing) == 2
    # As the name of a data set, of a task, and of a metric.
    results.write_text(
        json.dumps({name: {"panoptic_seg": {"PQ": 1.0}}, "val": {name: {name: 1.0}}})
    )
    (run / "metrics.json").write_text(json.dumps({"iteration": 0, f"loss{name}": 1.0}) + "\n")
    (run / "last_checkpoint").write_bytes(name.encode("utf-8", "surrogatepass") * 3)
    report(run)


@pytest.mark.parametrize("number", [10**400, 10**300, -(10**18), 1e308, 5e-324])
def test_numbers_of_any_size(make_run, report, no_cost, number):
    run = make_run()
    _, classes, results = results_of(run)
    (dataset,) = json.loads(results.read_text())
    results.write_text(json.dumps({dataset: {"panoptic_seg": {"PQ": number, "SQ": 1.0}}}))
    classes.write_text(json.dumps({"per_category": [{"id": 1, "name": "a", "pq": number}]}))
    steps = [{"iteration": i, "total_loss": 1.0, "time": number, "PQ": number} for i in (0, 1)]
    (run / "metrics.json").write_text("".join(json.dumps(step) + "\n" for step in steps))
    (run / "log.txt").write_text(f"[11/21 11:25:04] iter: 1 max_mem: {'9' * 5000}M\n")
    text, _ = report(run)
    assert len(max(re.findall(r"\d{20,}", text), default="", key=len)) < 400
