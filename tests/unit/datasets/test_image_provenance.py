"""How the images of records were made: of those that the records name, not of other splits in the same folder."""

import json

from coordexp.datasets.image_provenance import prepare_images_dir, provenance_of_records


def test_the_images_of_other_splits_do_not_count(tmp_path):
    """So that a test split which is converted later does not restart an interrupted training."""
    for split in ("train", "test"):
        prepare_images_dir(tmp_path / "images" / split, {"split": split}, {"max_blocks": 9, "image_dirs": []})
    (tmp_path / "train.jsonl").write_text(json.dumps({"images": ["images/train/a/1.jpg"]}) + "\n{broken\n")
    assert provenance_of_records(tmp_path / "train.jsonl") == [{"split": "train", "max_blocks": 9}]
    (tmp_path / "run").mkdir()
    (tmp_path / "run/train_rest.jsonl").write_text(json.dumps({"images": ["../images/train/a/1.jpg"]}))
    assert provenance_of_records(tmp_path / "run/train_rest.jsonl") == [{"split": "train", "max_blocks": 9}]


def test_records_of_unknown_images_have_the_provenance_of_their_folder(tmp_path):
    prepare_images_dir(tmp_path / "images/val", {"split": "val"}, {"max_blocks": 4, "image_dirs": []})
    (tmp_path / "val.jsonl").write_text("{}\n")
    assert provenance_of_records(tmp_path / "val.jsonl") == [{"split": "val", "max_blocks": 4}]
    assert provenance_of_records(tmp_path / "nothing.jsonl") == [{"split": "val", "max_blocks": 4}]
