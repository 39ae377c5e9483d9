"""The conversion of real photographs, in COCO and LVIS format and with both geometries."""

import json
from pathlib import Path

import numpy as np
import pytest
from dataset_cases import convert_to, pixel_records, source_of

from coordexp.datasets.validate import validate
from coordexp.runtime.io import write_json

PHOTOS = Path(__file__).parents[3].parent / "shared" / "photos"


@pytest.mark.skipif(not PHOTOS.exists(), reason="needs ../shared/photos")
@pytest.mark.parametrize("format", ["lvis", "coco"])
@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("geometry", ["bbox", "poly"])
def test_real_photographs_with_every_object_accounted_for(tmp_path, format, split, geometry):
    name = f"lvis_v1_{split}.json" if format == "lvis" else f"instances_{split}2017.json"
    path = PHOTOS / "annotations" / name
    folders = [str(PHOTOS / "images" / f"{s}2017") for s in ("val", "train")]
    manifest = tmp_path / "source.json"
    write_json(manifest, source_of(path, folders, format, split=split, absolute=True))
    stats = convert_to(manifest, tmp_path / "out", 16, geometry=geometry)
    data = json.loads(path.read_text())
    assert stats["images"]["written"] == len(data["images"])
    assert stats["objects"]["written"] == len(data["annotations"])
    assert stats["skipped"] == []
    texts = {c["id"]: c["name"].replace("_", " ") for c in data["categories"]}
    images = {i["id"]: i for i in data["images"]}
    for record in pixel_records(tmp_path / "out"):
        source = images[record.metadata.image_id]
        own = [a for a in data["annotations"] if a["image_id"] == source["id"]]
        assert sorted(o.desc for o in record.objects) == sorted(texts[a["category_id"]] for a in own)
        assert record.metadata.neg_category_ids == source.get("neg_category_ids", [])
        if geometry == "bbox":
            size = np.array([source["width"], source["height"]] * 2)
            back = sorted((np.array(o.norm) * size).round(6).tolist() for o in record.objects)
            assert np.allclose(back, sorted([x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in own)))
    assert validate(tmp_path / "out" / "train.jsonl", open_images=True) == []
