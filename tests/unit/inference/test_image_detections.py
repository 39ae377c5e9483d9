"""The detections in one image: units, filters, drawing, and the forms of other tools."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

import coordexp
from coordexp import Detections, to_coco
from coordexp.inference.image_sources import image_sources
from coordexp.records import Detection
from coordexp.runtime.errors import ConfigError

BOX = Detection("cat", [0.1, 0.2, 0.5, 0.6], 0.9, [100, 200, 500, 600], [0.01, 0.02, 0.03, 0.04])
POLYGON = Detection("dog", [0.5, 0.0, 1.0, 0.5], 0.4, [], [0.01] * 6, poly=[0.5, 0.0, 1.0, 0.0, 0.75, 0.5])
TEXT = Detection("ant", [0.0, 0.0, 0.25, 0.25], 0.6)


def detections(*objects: Detection, name: str = "image 1") -> Detections:
    [source] = image_sources(Image.new("RGB", (200, 100), "white"))
    return Detections(name, 200, 100, objects, "answer", {"duplicates": 1}, False, source)


def test_coordinates_are_in_pixels_and_spreads_too():
    found = detections(BOX, POLYGON, TEXT)
    assert found.labels == ["cat", "dog", "ant"] and found.scores.tolist() == [0.9, 0.4, 0.6] and len(found) == 3
    np.testing.assert_allclose(found.boxes[0], [20, 20, 100, 60])
    np.testing.assert_allclose(found.norm[0], BOX.norm)
    np.testing.assert_allclose(found.spreads[0], [2, 2, 6, 4])
    np.testing.assert_allclose(found.spreads[1], [2, 1, 2, 1, 2, 1])
    assert found.spreads[2].size == 0
    assert found.polygons[0] is None
    np.testing.assert_allclose(found.polygons[1], [[100, 0], [200, 0], [150, 50]])


def test_an_image_without_objects_has_empty_arrays():
    found = detections()
    assert found.boxes.shape == found.norm.shape == (0, 4) and found.scores.shape == (0,)
    assert found.to_coco()["annotations"] == [] and json.loads(found.to_json())["objects"] == []
    assert found.draw().size == (200, 100)


def test_the_best_objects_are_kept_in_the_order_of_the_answer():
    found = detections(TEXT, POLYGON, BOX)
    assert found.filter(0.5).labels == ["ant", "cat"]
    assert found.filter(max_objects=2).labels == ["ant", "cat"]
    assert found.filter(0.5, 1).labels == ["cat"] and found.filter(max_objects=0).labels == []
    assert found.filter(0.5).answer == "answer"


def test_the_drawing_shows_each_box():
    drawn = np.asarray(detections(BOX).draw())
    assert drawn.shape == (100, 200, 3) and (drawn[40, 19:22] != 255).any() and (drawn[90, 180] == 255).all()


def test_the_spread_of_each_side_is_shaded():
    plain, shaded = (np.asarray(detections(BOX).draw(spread=spread)).astype(int) for spread in (False, True))
    changed = (plain != shaded).any(axis=2)
    columns = np.flatnonzero(changed[40])
    assert columns.min() in (17, 18) and columns.max() in (105, 106)  # 20 - 2 and 100 + 6 pixels
    assert not changed[:, 110:].any() and not changed[70:].any()
    assert (np.asarray(detections(TEXT).draw(spread=True)) == np.asarray(detections(TEXT).draw())).all()


def test_coco_tools_read_the_exported_images(tmp_path):
    data = to_coco([detections(BOX, POLYGON), detections(TEXT, name="b.png")], ["dog", "cow"])
    (tmp_path / "coco.json").write_text(json.dumps(data))
    coco = COCO(tmp_path / "coco.json")
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == ["dog", "cow", "ant", "cat"]
    assert [image["file_name"] for image in coco.loadImgs([1, 2])] == ["image 1", "b.png"]
    cat, dog, ant = coco.loadAnns(coco.getAnnIds())
    assert cat["bbox"] == pytest.approx([20, 20, 80, 40]) and cat["score"] == 0.9 and ant["image_id"] == 2
    assert coco.annToMask(dog).sum() == pytest.approx(2500, rel=0.05)
    assert detections(BOX).to_coco(image_id=7)["annotations"][0]["image_id"] == 7


def test_json_has_everything():
    row = json.loads(detections(BOX, POLYGON).to_json())
    assert (row["image"], row["width"], row["answer"], row["problems"]) == ("image 1", 200, "answer", {"duplicates": 1})
    assert [set(found) for found in row["objects"]] == [{"label", "score", "box", "norm", "spread"}] * 1 + [
        {"label", "score", "box", "norm", "spread", "polygon"}
    ]
    assert row["objects"][1]["polygon"] == [100, 0, 200, 0, 150, 50] and row["truncated"] is False


def test_supervision_gets_boxes_labels_and_masks():
    supervision = pytest.importorskip("supervision")
    found = detections(BOX, TEXT).to_supervision()
    assert isinstance(found, supervision.Detections) and found.mask is None
    np.testing.assert_allclose(found.xyxy[0], [20, 20, 100, 60], rtol=1e-6)
    assert found.class_id.tolist() == [1, 0] and found.data["class_name"].tolist() == ["cat", "ant"]
    masked = detections(BOX, POLYGON).to_supervision(["dog", "cat"])
    assert masked.class_id.tolist() == [1, 0] and masked.mask.sum(axis=(1, 2)) == pytest.approx([3321, 2551], rel=0.03)
    annotated = supervision.BoxAnnotator().annotate(np.zeros((100, 200, 3), np.uint8), found)
    assert annotated.any()
    assert len(detections().to_supervision()) == 0


def test_fiftyone_gets_fractions_and_masks():
    fiftyone = pytest.importorskip("fiftyone")
    found = detections(BOX, POLYGON).to_fiftyone()
    assert isinstance(found, fiftyone.Detections)
    cat, dog = found.detections
    assert cat.label == "cat" and cat.confidence == 0.9 and cat.bounding_box == pytest.approx([0.1, 0.2, 0.4, 0.4])
    assert cat.mask is None and dog.mask.shape == (50, 100) and 0.4 < dog.mask.mean() < 0.6


@pytest.mark.parametrize(("name", "package"), [("supervision", r"'coordexp\[supervision\]'"), ("fiftyone", "fiftyone")])
def test_a_missing_library_is_named(monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=f"pip install {package}"):
        getattr(detections(BOX), f"to_{name}")()


def test_an_unknown_name_of_the_package_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Detektor'"):
        _ = coordexp.Detektor
