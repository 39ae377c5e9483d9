"""Paths of this machine in files that may be published."""

from coordexp.runtime.io import read_json, write_json
from coordexp.runtime.local_paths import make_files_portable, portable_path, published, recorded, replace_paths, shown


def test_paths_in_the_working_directory_become_relative_and_others_lose_their_folders(tmp_path, monkeypatch):
    (tmp_path / "work" / "data").mkdir(parents=True)
    (tmp_path / "home" / "alice").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    assert portable_path(tmp_path / "work" / "data") == portable_path("data") == "data"
    assert portable_path(tmp_path / "home" / "alice") == ".../alice"
    kept = {"prompt": "/detect every/object", "url": "https://a/b", "other": "/no/such/file", "number": 1}
    value = {"files": [str(tmp_path / "work" / "data"), str(tmp_path / "home" / "alice")], **kept}
    assert replace_paths(value, recorded) == {"files": ["data", ".../alice"], **kept}


def test_files_of_a_folder_are_rewritten(tmp_path):
    base = tmp_path / "home" / "alice" / "base"
    base.mkdir(parents=True)
    out = tmp_path / "out"
    write_json(out / "adapter_config.json", {"base_model_name_or_path": str(base), "r": 4})
    write_json(out / "tokenizer.json", {"model": {"merges": [str(base)]}})
    (out / "README.md").write_text(f"base_model: {base}\n")
    make_files_portable(out, base)
    assert read_json(out / "adapter_config.json") == {"base_model_name_or_path": ".../base", "r": 4}
    assert (out / "README.md").read_text() == "base_model: .../base\n"
    assert read_json(out / "tokenizer.json") == {"model": {"merges": [str(base)]}}


def test_paths_beside_a_file_are_relative_to_it_unless_they_name_users(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert portable_path("/data/coco/val.json", "/data/out/eval.json") == "../coco/val.json"
    assert portable_path("/home/me/coco/val.json", "/home/me/out/eval.json") == "../coco/val.json"
    assert portable_path("/home/other/val.json", "/home/me/out/eval.json") == ".../val.json"
    assert portable_path("/home/me/val.json", "/data/out/eval.json") == ".../val.json"
    assert portable_path("val.json", "/data/out/eval.json") == "val.json"


def test_every_rule_applies_to_keys_and_values_at_any_depth(tmp_path, monkeypatch):
    (tmp_path / "work" / "data").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    inside, outside = str(tmp_path / "work/data"), "/home/ada/cats"
    value = [{"data/": ({outside: f"read {outside}/x.png, 3 files"}, "a/b", inside, None, 4)}]
    assert replace_paths(value, recorded) == [
        {"data/": [{outside: f"read {outside}/x.png, 3 files"}, "a/b", "data", None, 4]}
    ]
    assert replace_paths(value, shown) == [{"data/": [{".../cats": "read .../x.png, 3 files"}, "a/b", "data", None, 4]}]
    assert replace_paths(value, published)[0].keys() == {".../data"}
