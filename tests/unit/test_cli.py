"""The command line: help with examples, one run per command, plug-ins, and error messages."""

import json
import os
import re
import subprocess
import sys

import pytest
from evaluation_cases import generated

from coordexp import __version__
from coordexp.cli import main
from coordexp.modeling.families import FAMILIES
from coordexp.runtime.io import read_json

COMMANDS = (
    "init",
    "show",
    "expand",
    "train",
    "merge",
    "doctor",
    "validate",
    "evaluate",
    "compare",
    "detect",
    "predict",
    "app",
    "publish",
    "export",
    "parse",
    "summary",
    "crate",
    "completion",
    "row",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"coordexp {command}" in capsys.readouterr().out.split("example:")[1]


def test_validate_counts_the_problems_of_a_file(shapes_data, tmp_path, capsys):
    assert main(["validate", str(shapes_data / "train.jsonl"), "--open-images"]) == 0
    lines = (shapes_data / "train.jsonl").read_text().splitlines()
    row = json.loads(lines[2])
    row["objects"][0]["bbox_2d"] = [50, 10, 40, 20]
    (tmp_path / "bad.jsonl").write_text("\n".join([*lines[:2], json.dumps(row), "{"]) + "\n")
    capsys.readouterr()
    assert main(["validate", str(tmp_path / "bad.jsonl")]) == 1
    printed = capsys.readouterr().out
    assert "bad.jsonl: line 3: objects[0].bbox_2d" in printed and "bad.jsonl: line 4" in printed


def test_doctor_decodes_the_boxes_from_the_tokens(shapes_data, tiny_model, tmp_path, capsys):
    image = tmp_path / "boxes.png"
    file = str(shapes_data / "train.jsonl")
    assert main(["doctor", file, "--index", "1", "--model", str(tiny_model), "--out", str(image)]) == 0
    printed = capsys.readouterr().out
    assert "<|image_pad|> x9" in printed and image.stat().st_size > 0
    overlaps = [float(line.rsplit(" ", 1)[1]) for line in printed.splitlines() if " IoU " in line and "  " in line[:2]]
    assert overlaps and min(overlaps) > 0.95


def test_doctor_reports_a_model_that_does_not_use_the_image(shapes_data, tiny_model, capsys):
    assert main(["doctor", str(shapes_data / "val.jsonl"), "--image-use", "3", "--model", str(tiny_model)]) == 0
    printed = capsys.readouterr().out
    assert "in 3 images" in printed and "barely uses the image" in printed
    assert main(["doctor", str(shapes_data / "val.jsonl"), "--image-use", "0", "--model", str(tiny_model)]) == 2


def test_doctor_shows_a_record_as_augmented(shapes_data, tiny_model, tmp_path, capsys):
    (tmp_path / "own.yaml").write_text("custom: {augmentation: {flip: 1.0}}")
    options = ["--index", "1", "--model", str(tiny_model), "--config", str(tmp_path / "own.yaml")]
    left = {}
    for name, more in (("plain", []), ("flipped", ["--epoch", "0", "--out", str(tmp_path / "a.png")])):
        assert main(["doctor", str(shapes_data / "train.jsonl"), *options, *more]) == 0
        found = re.findall(r"^  (.+): (\[.*\])  IoU", capsys.readouterr().out, flags=re.MULTILINE)
        left[name] = {desc: json.loads(box) for desc, box in found}
    for desc, (x1, y1, x2, y2) in left["plain"].items():
        assert left["flipped"][desc] == pytest.approx([96 - x2, y1, 96 - x1, y2], abs=0.1)
    assert (tmp_path / "a.png").stat().st_size > 0


def test_evaluate_compare_and_summary(tmp_path, capsys):
    predictions, annotations = (case := generated(0, lvis=True)).write(tmp_path / "own")
    results = tmp_path / "other" / "results.json"
    results.parent.mkdir()
    results.write_text(json.dumps(case.coco_results()))
    written = []
    for found in (predictions, results):
        written.append(found.parent / "eval.json")
        command = ["evaluate", "--gt", str(annotations), "--pred", str(found), "--out", str(written[-1])]
        assert main([*command, "--subset"] if found is results else command) == 0
    formats = [read_json(path)["inputs"]["predictions"]["format"] for path in written]
    assert formats == ["coordexp", "coco"]
    assert main(["compare", *map(str, written), "--out", str(tmp_path / "compare.json")]) == 0
    assert (tmp_path / "compare.html").stat().st_size > 0
    assert main(["summary", str(tmp_path / "own")]) == 0
    printed = capsys.readouterr().out
    assert len(re.findall(rf"^AP .* {read_json(written[0])['lvis']['metrics']['AP']:.3f}\b", printed, re.M)) >= 2
    assert "report.html" not in printed  # there is none


def test_evaluate_prints_the_headline_and_what_could_not_be_read(tmp_path, capsys):
    _, annotations = (case := generated(0, lvis=False, images=1)).write(tmp_path)
    annotations.rename(tmp_path / "val.json")
    answer = '[{"bbox_2d": [1, 2, 3, 4], "label": "thing0",}]'
    (tmp_path / "answers.jsonl").write_text(json.dumps({"image_id": case.images[0]["id"], "answer": answer}))
    options = ["--pred", str(tmp_path / "answers.jsonl"), "--format", "qwen3-vl", "--out", str(tmp_path / "eval.json")]
    assert main(["evaluate", "--gt", str(tmp_path / "val.json"), *options]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^AP50 ", printed, re.M) and "val val" not in printed
    assert "problems in answers: 1 trailing_comma" in printed


@pytest.mark.parametrize(
    ("annotations", "options", "split"),
    [
        ("instances_test2017.json", [], "test"),
        ("train/_annotations.coco.json", ["--split", "minival"], "minival"),
        ("annotations.json", [], None),
    ],
)
def test_evaluate_states_the_split_that_was_scored(tmp_path, capsys, annotations, options, split):
    predictions, written = generated(0, lvis=False, images=1).write(tmp_path)
    (tmp_path / annotations).parent.mkdir(exist_ok=True)
    written.rename(tmp_path / annotations)
    files = ["--gt", str(tmp_path / annotations), "--pred", str(predictions), "--out", str(tmp_path / "eval.json")]
    assert main(["evaluate", *files, *options]) == 0
    assert read_json(tmp_path / "eval.json")["split"] == split
    name = (tmp_path / annotations).stem
    expected = name if split in (None, "test") else f"{name} {split}"
    assert capsys.readouterr().out.startswith(f"{expected}: 1 images")


def test_parse_imports_the_responses_of_a_server(records, tmp_path, capsys):
    box = ", ".join(f"<|coord_{k}|>" for k in (1, 2, 30, 40))
    line = json.dumps({"text": f'{{"objects": [{{"desc": "cat", "bbox_2d": [{box}]}}]}}'})
    (tmp_path / "served.jsonl").write_text(f"{line}\n" * 5)
    command = ["parse", str(tmp_path / "served.jsonl"), "--records", str(records), "--out", str(tmp_path / "p.jsonl")]
    assert main(command) == 0
    assert "detections: 5" in capsys.readouterr().out


def test_an_error_is_printed_without_a_traceback(tmp_path, capsys):
    assert main(["summary", str(tmp_path)]) == 2
    assert "eval.json" in capsys.readouterr().err
    (tmp_path / "eval.json").write_text("{}")
    assert main(["summary", str(tmp_path / "eval.json")]) == 2
    assert "not a folder" in capsys.readouterr().err


def test_a_plug_in_is_loaded_before_the_command_and_listed_for_other_processes(tmp_path, monkeypatch):
    (tmp_path / "cli_plugin.py").write_text(
        "from coordexp.modeling.families import FAMILIES\n"
        "from coordexp.modeling.families.qwen3_vl import Qwen3VL\n"
        "FAMILIES.register('cli_family')(type('CliFamily', (Qwen3VL,), {}))\n"
    )
    monkeypatch.setenv("COORDEXP_PLUGINS", "")
    plugin = str(tmp_path / "cli_plugin.py")
    try:
        assert main(["validate", str(tmp_path / "none.jsonl"), "--plugin", plugin]) == 2
        assert "cli_family" in FAMILIES
        assert os.environ["COORDEXP_PLUGINS"] == plugin
    finally:
        FAMILIES._items.pop("cli_family", None)
        sys.modules.pop("coordexp_plugin_cli_plugin", None)


def test_a_missing_plug_in_is_an_error(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COORDEXP_PLUGINS", "")
    assert main(["--plugin", str(tmp_path / "none.py"), "summary", str(tmp_path)]) == 2
    assert "plug-in file not found" in capsys.readouterr().err


def test_options_of_a_struct_have_its_description_and_choices(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--on-bad error|skip invalid annotations: `error` stops" in text
    assert "qwen2.5-vl" in text


def test_an_output_never_replaces_an_input(tmp_path, capsys):
    predictions, annotations = generated(0, lvis=False, images=2).write(tmp_path)
    for out in (predictions, annotations):
        before = out.read_bytes()
        assert main(["evaluate", "--gt", str(annotations), "--pred", str(predictions), "--out", str(out)]) == 2
        assert "would replace an input" in capsys.readouterr().err and out.read_bytes() == before
    (tmp_path / "photo.png").write_bytes(b"an image")
    photo = str(tmp_path / "photo.png")
    assert main(["detect", photo, "--model", str(tmp_path), "--out", photo]) == 2
    assert "would replace an input" in capsys.readouterr().err


WRITING = {  # all but merge, whose output is tested with it
    "init": "init {folder} --out {out}",
    "show": "show {none} --out {out}",
    "expand": "expand {folder} --out {out}",
    "train": "train --config {none} --model {folder} --out {out}",
    "doctor": "doctor {none} --model {folder} --out {out}",
    "evaluate": "evaluate --gt {none} --pred {none} --out {out}",
    "compare": "compare {none} {none} --out {out}",
    "detect": "detect {none} --model {folder} --out {out}",
    "predict": "predict {none} --model {folder} --out {out}",
    "export": "export {none} --to coco --out {out}",
    "parse": "parse {none} --records {none} --out {out}",
}


@pytest.mark.parametrize("command", WRITING)
@pytest.mark.parametrize("kind", ["file", "link", "device"])
def test_a_file_that_coordexp_did_not_write_is_never_replaced(tmp_path, capsys, command, kind):
    mine, out = tmp_path / "mine.txt", tmp_path / "out.png"
    mine.write_text("mine\n")
    if kind == "file":
        mine.rename(out)
        mine = out
    elif kind == "link":
        out.symlink_to(mine)
    else:
        os.mkfifo(out)
    command = WRITING[command].format(out=out, none=tmp_path / "none", folder=tmp_path).split()
    assert main(command) != 0
    assert re.search(rf"{out}: (the |--out: )?(file|folder|output)", capsys.readouterr().err)
    assert mine.read_text() == "mine\n" and out.lstat()
    assert {path.name for path in tmp_path.iterdir()} == {"mine.txt", "out.png"} if kind != "file" else {"out.png"}


def test_every_command_with_an_output_is_in_the_table(capsys):
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert ("--out " in capsys.readouterr().out) == (command in {*WRITING, "merge"}), command


def test_earlier_results_are_replaced(tmp_path, capsys):
    predictions, annotations = generated(0, lvis=False, images=2).write(tmp_path)
    outs, compared = [str(tmp_path / name / "eval.json") for name in ("a", "b")], tmp_path / "compare.json"
    for _ in range(2):
        for out in outs:
            assert main(["evaluate", "--gt", str(annotations), "--pred", str(predictions), "--out", out]) == 0
        assert main(["compare", *outs, "--out", str(compared)]) == 0
    (tmp_path / "compare.html").write_text("<html>mine</html>")
    assert main(["compare", *outs, "--out", str(compared)]) == 2
    assert "compare.html: the output file exists and was not written" in capsys.readouterr().err
    assert main(["compare", *outs, "--out", str(tmp_path / "new.html")]) == 2
    assert "the HTML page of the comparison would replace" in capsys.readouterr().err


def test_a_folder_in_place_of_a_file_is_an_error_without_a_traceback(tmp_path, capsys):
    folder = tmp_path / "x.json"
    folder.mkdir()
    for command in (
        ["parse", str(folder), "--records", str(folder), "--out", str(tmp_path / "p.jsonl")],
        ["compare", str(folder), str(folder), "--out", str(tmp_path / "c.json")],
        ["train", "--config", str(folder), "--model", str(tmp_path), "--out", str(tmp_path / "o" / "adapter")],
    ):
        assert main(command) == 2
        assert "x.json" in capsys.readouterr().err


def test_the_suffix_of_a_drawn_image_is_checked_at_once(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["doctor", "a.jsonl", "--model", str(tmp_path), "--out", "boxes.xyz"])
    assert stop.value.code == 2 and "expected a name that ends in .png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "suggestion"),
    [
        (["evalute"], "did you mean 'evaluate'?"),
        (["detect", "a.png", "--modle", "merged"], "--modle, did you mean '--model'?"),
        (["summary", "run", "--verbos"], "unrecognized arguments: --verbos"),
        (["export", "a.jsonl", "--to", "yolov", "--out", "o"], "did you mean 'yolo'?"),
    ],
)
def test_a_mistyped_word_is_an_error_with_a_suggestion(words, suggestion, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2 and suggestion in capsys.readouterr().err


def test_version_and_exit_codes_are_printed(capsys):
    for option, text in (("--version", f"coordexp {__version__}"), ("--help", "130  interrupted")):
        with pytest.raises(SystemExit) as stop:
            main([option])
        assert stop.value.code == 0 and text in capsys.readouterr().out


def test_an_interrupted_command_ends_without_a_traceback(monkeypatch, capsys):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("coordexp.datasets.validate.validate", interrupted)
    assert main(["validate", "a.jsonl"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_closed_pipe_ends_a_command_quietly(shapes_data):
    command = [sys.executable, "-m", "coordexp.cli", "validate", str(shapes_data / "train.jsonl")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_options_of_merge_take_precedence_over_the_environment(tmp_path, monkeypatch):
    seen = {}

    def merged(adapters, out, base, **options):
        seen.update(adapters=adapters, out=out, base=base, **options)
        return 0

    monkeypatch.setattr("coordexp.modeling.merge.merge_and_report", merged)
    for name, value in {"ADAPTERS": "a b", "OUTPUT_DIR": "env", "BASE": "base", "ALLOW_OVERWRITE": "1"}.items():
        monkeypatch.setenv(name, value)
    assert main(["merge"]) == 0
    expected = {"adapters": ["a", "b"], "out": "env", "base": "base", "allow_overwrite": True, "best": False}
    assert seen == expected
    assert main(["merge", "my run/adapter", "--out", "given", "--model", "other", "--best"]) == 0
    assert seen == {
        "adapters": ["my run/adapter"],
        "out": "given",
        "base": "other",
        "allow_overwrite": True,
        "best": True,
    }


def test_train_passes_the_address_of_the_first_machine_on(tmp_path, monkeypatch, capsys):
    for name in ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "unset")  # so that it is restored
    (tmp_path / "own.yaml").write_text("{}")
    words = ["train", "--config", str(tmp_path / "own.yaml"), "--model", "m", "--out", str(tmp_path / "o" / "adapter")]
    assert main([*words, "--nodes", "2", "--node-rank", "1", "--master-addr", "h", "--master-port", "29500"]) == 2
    assert "no data to train on" in capsys.readouterr().err
    assert [os.environ[name] for name in ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT")] == ["1", "h", "29500"]
