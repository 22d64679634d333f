"""The PQ evaluator against counts worked out by hand, and ranks that are merged."""

import json
import logging

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from proscale.data.formats.image_file import read_panoptic_png, write_panoptic_png
from proscale.evaluation import CocoPanopticEvaluator, PanopticQuality


def fill(evaluator, toy, image_ids):
    for image_id in image_ids:
        evaluator.process([toy.inputs(image_id)], [toy.panoptic(image_id)])


def without_cats(toy, image_id):
    """The right prediction with its first segment, a cat, taken away."""
    segment_map, infos = toy.panoptic(image_id)["panoptic_seg"]
    return {"panoptic_seg": (segment_map * (segment_map != infos[0]["id"]), infos[1:])}


def test_ground_truth_scores_100(toy_dataset):
    evaluator = CocoPanopticEvaluator(toy_dataset.name)
    fill(evaluator, toy_dataset, (3, 5, 7))
    results = evaluator.evaluate()
    assert list(results) == ["panoptic_seg"]
    keys = ["PQ", "SQ", "RQ", "PQ_th", "SQ_th", "RQ_th", "PQ_st", "SQ_st", "RQ_st"]
    assert results["panoptic_seg"] == dict.fromkeys(keys, 100.0)


def test_things_and_stuff_may_share_contiguous_ids(toy_dataset):
    metadata = MetadataCatalog.get(toy_dataset.name)
    metadata.__dict__["stuff_dataset_id_to_contiguous_id"] = {30: 0, 40: 1}
    evaluator = CocoPanopticEvaluator(toy_dataset.name)
    for image_id in (3, 5, 7):
        output = toy_dataset.panoptic(image_id)
        for info in output["panoptic_seg"][1]:
            info["category_id"] %= 2
        evaluator.process([toy_dataset.inputs(image_id)], [output])
    assert evaluator.evaluate()["panoptic_seg"]["PQ"] == 100.0


def test_results_file_and_tables(toy_dataset, tmp_path, caplog):
    evaluator = CocoPanopticEvaluator(toy_dataset.name, str(tmp_path / "new" / "folder"))
    fill(evaluator, toy_dataset, (3, 5))
    evaluator.process([toy_dataset.inputs(7)], [without_cats(toy_dataset, 7)])
    with caplog.at_level(logging.INFO, logger="proscale"):
        summary = evaluator.evaluate()["panoptic_seg"]
    # Cats: 2 found, 1 missed. PQ = RQ = 2 / 2.5.
    assert summary["PQ_th"] == pytest.approx((80 + 100) / 2)
    assert summary["PQ_st"] == 100

    written = json.loads((tmp_path / "new/folder/panoptic_seg.json").read_text())
    assert written["summary"] == summary
    assert (written["dataset"], written["num_images"]) == (toy_dataset.name, 3)
    cat, sky, _, _ = written["per_category"]
    assert cat == {
        "id": 10,
        "name": "cat",
        "isthing": True,
        "pq": pytest.approx(80),
        "sq": 100.0,
        "rq": pytest.approx(80),
        "tp": 2,
        "fp": 0,
        "fn": 1,
    }
    assert (sky["name"], sky["isthing"]) == ("sky", False)
    assert "| Things |" in caplog.text
    assert "| cat" in caplog.text and "|  80.00 |" in caplog.text


def test_pq_of_every_image(toy_dataset, tmp_path):
    evaluator = CocoPanopticEvaluator(toy_dataset.name, str(tmp_path))
    fill(evaluator, toy_dataset, (3, 5))
    evaluator.process([toy_dataset.inputs(7)], [without_cats(toy_dataset, 7)])
    evaluator.evaluate()
    written = json.loads((tmp_path / "panoptic_seg_images.json").read_text())
    assert written["dataset"] == toy_dataset.name
    names = [toy_dataset.inputs(image_id)["file_name"] for image_id in (3, 5, 7)]
    assert [image["file_name"] for image in written["images"]] == names
    *right, wrong = (image["PQ"] for image in written["images"])
    assert right == [100.0, 100.0]
    # The cats of this image alone are 0, and count like its other categories.
    categories = {info["category_id"] for info in toy_dataset.segments[7]}
    assert wrong == pytest.approx(100 * (1 - 1 / len(categories)))


def test_undefined_metrics_are_null(toy_dataset, tmp_path):
    content = json.loads((tmp_path / "panoptic.json").read_text())
    for annotation in content["annotations"]:
        annotation["segments_info"] = [
            s for s in annotation["segments_info"] if s["category_id"] != 30
        ]
        path = tmp_path / annotation["file_name"]
        keep = [s["id"] for s in annotation["segments_info"]]
        ids = toy_dataset.maps[annotation["image_id"]]
        write_panoptic_png(path, ids * np.isin(ids, keep))
        toy_dataset.segments[annotation["image_id"]] = annotation["segments_info"]
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    evaluator = CocoPanopticEvaluator(toy_dataset.name, str(tmp_path))
    fill(evaluator, toy_dataset, (3, 5, 7))
    evaluator.evaluate()
    text = (tmp_path / "panoptic_seg.json").read_text()
    grass = json.loads(text)["per_category"][3]
    assert (grass["name"], grass["pq"], grass["tp"]) == ("grass", None, 0)
    assert "NaN" not in text


def test_without_output_dir_nothing_is_written(toy_dataset, tmp_path):
    before = sorted(tmp_path.iterdir())
    evaluator = CocoPanopticEvaluator(toy_dataset.name)
    fill(evaluator, toy_dataset, (3, 5, 7))
    evaluator.evaluate()
    assert sorted(tmp_path.iterdir()) == before


def test_reset_drops_all_counts(toy_dataset):
    evaluator = CocoPanopticEvaluator(toy_dataset.name)
    evaluator.process([toy_dataset.inputs(3)], [without_cats(toy_dataset, 3)])
    evaluator.reset()
    fill(evaluator, toy_dataset, (3, 5, 7))
    assert evaluator.evaluate()["panoptic_seg"]["PQ"] == 100.0


def test_images_without_prediction(toy_dataset):
    evaluator = CocoPanopticEvaluator(toy_dataset.name)
    fill(evaluator, toy_dataset, (5,))
    with pytest.raises(ValueError, match=r"2 of the 3 images .* no prediction.*image_id 7, 3:"):
        evaluator.evaluate()


def test_images_predicted_twice(toy_dataset):
    evaluator = CocoPanopticEvaluator(toy_dataset.name)
    fill(evaluator, toy_dataset, (3, 5, 7, 5))
    with pytest.raises(ValueError, match=r"1 of the 3 images .* more than once.*image_id 5:"):
        evaluator.evaluate()


def test_a_data_set_of_some_of_the_images(toy_dataset):
    MetadataCatalog.get(toy_dataset.name).image_ids = (5, 7)
    evaluator = CocoPanopticEvaluator(toy_dataset.name)
    fill(evaluator, toy_dataset, (5, 7))
    assert evaluator.evaluate()["panoptic_seg"]["PQ"] == 100.0
    with pytest.raises(ValueError, match=r"3\.jpg \(image_id 3\) is not among the 2 images"):
        fill(evaluator, toy_dataset, (3,))


def test_errors_name_the_image(toy_dataset):
    evaluator = CocoPanopticEvaluator(toy_dataset.name)
    segment_map, infos = toy_dataset.panoptic(3)["panoptic_seg"]
    inputs = toy_dataset.inputs(3)

    def process(new_map, new_infos):
        evaluator.reset()
        evaluator.process([inputs], [{"panoptic_seg": (new_map, new_infos)}])
        evaluator.evaluate()

    first = infos[0]["id"]
    with pytest.raises(ValueError, match=rf"3\.jpg .*segment {first}: it is in the map"):
        process(segment_map, infos[1:])
    with pytest.raises(ValueError, match=r"3\.jpg .*shape \(12, 19\)"):
        process(segment_map[:, 1:], infos)
    with pytest.raises(
        ValueError, match=rf"3\.jpg .*segment {first}: 3 is not .* thing .*\[0, 1\]"
    ):
        process(segment_map, [{**infos[0], "category_id": 3}, *infos[1:]])
    (toy_dataset.root / "3.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"3\.png"):
        process(segment_map, infos)


def test_an_error_is_raised_before_the_last_image(toy_dataset):
    evaluator = CocoPanopticEvaluator(toy_dataset.name, num_workers=1)
    segment_map, infos = toy_dataset.panoptic(3)["panoptic_seg"]
    wrong = {"panoptic_seg": (segment_map, infos[1:])}
    with pytest.raises(ValueError, match=r"3\.jpg .*: it is in the map"):
        for _ in range(4):
            evaluator.process([toy_dataset.inputs(3)], [wrong])
    evaluator.reset()
    fill(evaluator, toy_dataset, (3, 5, 7))
    assert evaluator.evaluate()["panoptic_seg"]["PQ"] == 100.0


def test_predictions_for_a_test_server(toy_dataset, tmp_path):
    out = tmp_path / "out"
    evaluator = CocoPanopticEvaluator(toy_dataset.name, str(out), save_predictions=True)
    fill(evaluator, toy_dataset, (3, 5, 7))
    assert evaluator.evaluate()["panoptic_seg"]["PQ"] == 100.0
    written = json.loads((out / "panoptic_predictions.json").read_text())["annotations"]
    assert {a["image_id"] for a in written} == {3, 5, 7}
    # The written files score as the predictions do.
    content = json.loads((tmp_path / "panoptic.json").read_text())
    true_segments = {a["image_id"]: a["segments_info"] for a in content["annotations"]}
    quality = PanopticQuality(content["categories"])
    for annotation in written:
        ids = read_panoptic_png(out / "panoptic_predictions" / annotation["file_name"])
        image_id = annotation["image_id"]
        true_map = toy_dataset.maps[image_id]
        quality.update(ids, annotation["segments_info"], true_map, true_segments[image_id])
    assert quality.results().all.pq == 100.0


def test_a_split_without_annotations_is_saved_only(toy_dataset, tmp_path):
    content = json.loads((tmp_path / "panoptic.json").read_text())
    del content["annotations"]
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"panoptic\.json has no annotations.*SAVE_PREDICTIONS"):
        CocoPanopticEvaluator(toy_dataset.name, str(tmp_path))
    out = tmp_path / "out"
    evaluator = CocoPanopticEvaluator(toy_dataset.name, str(out), save_predictions=True)
    fill(evaluator, toy_dataset, (3, 5, 7))
    assert evaluator.evaluate() == {"panoptic_seg": {}}
    assert {p.name for p in (out / "panoptic_predictions").iterdir()} == {"3.png", "5.png", "7.png"}
    with pytest.raises(
        ValueError, match=r"TEST\.SAVE_PREDICTIONS is True: expected an output folder"
    ):
        CocoPanopticEvaluator(toy_dataset.name, save_predictions=True)


def test_categories_without_contiguous_id_are_refused(toy_dataset):
    MetadataCatalog.get(toy_dataset.name).stuff_dataset_id_to_contiguous_id.pop(40)
    with pytest.raises(ValueError, match=r"panoptic\.json: categories \[40\]"):
        CocoPanopticEvaluator(toy_dataset.name)


def test_image_ids_without_annotation_are_refused(toy_dataset):
    MetadataCatalog.get(toy_dataset.name).image_ids = (5, 99)
    with pytest.raises(ValueError, match=r"panoptic\.json: no annotations.*\[99\]"):
        CocoPanopticEvaluator(toy_dataset.name)


def test_ranks_are_merged_on_rank_0(toy_dataset, monkeypatch):
    ranks = [CocoPanopticEvaluator(toy_dataset.name) for _ in range(2)]
    fill(ranks[0], toy_dataset, (3,))
    ranks[1].process([toy_dataset.inputs(5)], [without_cats(toy_dataset, 5)])
    fill(ranks[1], toy_dataset, (7,))

    sent = []
    with monkeypatch.context() as patch:
        patch.setattr(comm, "gather", lambda data: sent.append(data) or [])
        patch.setattr(comm, "is_main_process", lambda: False)
        assert [rank.evaluate() for rank in ranks] == [None, None]
    monkeypatch.setattr(comm, "gather", lambda data: sent)
    summary = ranks[0].evaluate()["panoptic_seg"]
    assert summary["PQ_th"] == pytest.approx(90)
    assert ranks[0].evaluate()["panoptic_seg"] == summary, "evaluate() must not count twice"


def test_sample_through_detectron2s_registration(sample_coco):
    """Half of the sample predicted right, the other half not at all, in tensors of a model."""
    name = "coco_2017_val_panoptic"
    content = json.loads((sample_coco / "annotations/panoptic_val2017.json").read_text())
    expected = PanopticQuality(content["categories"])
    annotations = {a["image_id"]: a["segments_info"] for a in content["annotations"]}
    evaluator = CocoPanopticEvaluator(name)
    for number, entry in enumerate(DatasetCatalog.get(name)):
        ids = read_panoptic_png(entry["pan_seg_file_name"]).astype(np.int32)
        segments = [
            {k: s[k] for k in ("id", "isthing", "category_id")} for s in entry["segments_info"]
        ]
        dataset_segments = annotations[entry["image_id"]]
        predicted_ids, predicted = ids, dataset_segments
        if number % 2:
            predicted_ids, segments, predicted = np.zeros_like(ids), [], []
        expected.update(predicted_ids, predicted, ids, dataset_segments)
        evaluator.process([entry], [{"panoptic_seg": (torch.from_numpy(predicted_ids), segments)}])
    found = evaluator.evaluate()["panoptic_seg"]
    assert found == expected.results().summary()
    assert 30 < found["PQ"] < 80
