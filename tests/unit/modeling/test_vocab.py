"""Adding the coordinate tokens: ids, embedding rows, files and tying; everything else stays the same; errors."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import modeling_helpers as helpers
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from coordexp import cli
from coordexp.modeling import checksums, tiny, vocab
from coordexp.modeling.checkpoint_files import weights_identity
from coordexp.records import WILDCARD_TOKEN, coord_tokens
from coordexp.runtime.errors import CoordExpError, ModelError

EMBED = "model.language_model.embed_tokens.weight"


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}


@pytest.fixture(scope="module")
def qwen3():
    return helpers.qwen3_tokenizer()


def build(folder: Path, **knobs) -> Path:
    return tiny.build(folder, 3, **helpers.SMALL | knobs)


def test_published_vocabulary_gives_the_published_ids(qwen3, tmp_path):
    base = build(tmp_path / "base", tokenizer=qwen3, pad_rows=151936 - 151669, hidden=8, heads=1, kv_heads=1)
    before = AutoTokenizer.from_pretrained(base)
    assert len(before) == 151669
    assert before.convert_tokens_to_ids("<|endoftext|>") == 151643
    assert before.convert_tokens_to_ids("</think>") == 151668
    facts = vocab.expand(base, tmp_path / "out", "numeric")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(tokenizer) == 152670 == facts["tokenizer_length"]
    assert tokenizer.convert_tokens_to_ids(WILDCARD_TOKEN) == 151669
    assert tokenizer.convert_tokens_to_ids(coord_tokens()) == list(range(151670, 152670))
    assert vocab.coord_ids(tmp_path / "out") == vocab.CoordIds(151670, 152669, 151669) == vocab.coord_ids(tokenizer)
    table, old = (tensors(f)[EMBED] for f in (tmp_path / "out", base))
    assert table.shape == (152670, 8) and old.shape == (151936, 8)
    assert torch.equal(table[:151669], old[:151669])
    # rows on the former padding and rows beyond it follow the same rule: 0 and 1 are as similar as 265 to 267
    step = (table[151671:] - table[151670:-1]).norm(dim=1)
    assert step[264:267].max() < 3 * step.median()
    text = '{"objects": [{"desc": "black cat", "bbox_2d": [<|coord_110|>, <|coord_999|>]}]}'
    ids = tokenizer(text).input_ids
    assert ids.count(151670 + 110) == 1 and ids.count(152669) == 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_known_encodings_of_the_published_vocabulary(qwen3):
    """Ids from the documentation and model cards of Qwen."""
    assert qwen3.encode("Hello, world!").ids == [9707, 11, 1879, 0]
    assert qwen3.encode("<|im_start|>user\n").ids == [151644, 872, 198]
    assert qwen3.encode("<|im_start|>assistant\n").ids == [151644, 77091, 198]
    assert qwen3.get_vocab_size() == 151669
    assert len(json.loads(qwen3.to_str())["model"]["merges"]) == 151387


@pytest.mark.parametrize("pad_rows", [0, 300, 2000], ids=["grows", "partly on padding", "fits the padding"])
@pytest.mark.parametrize("sharded", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["single", "sharded"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
def test_only_new_rows_change(tmp_path, tie, dtype, sharded, pad_rows):
    base = build(tmp_path / "base", tie=tie, dtype=dtype, pad_rows=pad_rows, vocab_size=300)
    if sharded:
        helpers.reshard(base)
    facts = vocab.expand(base, tmp_path / "out", "numeric")
    before, after = tensors(base), tensors(tmp_path / "out")
    assert before.keys() == after.keys() == before.keys()
    tables = {EMBED} | (set() if tie else {"lm_head.weight"})
    known = facts["wildcard"]
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype
        if name not in tables:
            assert torch.equal(after[name], tensor), name
            continue
        rows = max(len(tensor), known + 1001)
        assert after[name].shape == (rows, tensor.shape[1])
        assert torch.equal(after[name][:known], tensor[:known])
        assert torch.equal(after[name][known + 1001 :], tensor[known + 1001 :])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["text_config"]["vocab_size"] == rows == facts["vocab_size"]
    assert config["tie_word_embeddings"] is tie
    model = helpers.load(tmp_path / "out")
    assert (model.lm_head.weight is model.get_input_embeddings().weight) is tie
    changed = {f.name for f in base.iterdir() if f.stat().st_ino != (tmp_path / "out" / f.name).stat().st_ino}
    assert {"config.json", "tokenizer.json", "tokenizer_config.json"} <= changed
    rewritten = {f for f in changed if f.endswith(".safetensors")}
    assert rewritten == {f.name for f in base.glob("*.safetensors") if tables & load_file(f).keys()}


def test_initialisations_of_new_rows(tmp_path):
    base = build(tmp_path / "base", embed_std=0.3)
    old = tensors(base)[EMBED]
    vocab.expand(base, tmp_path / "mean", "mean")
    ids = vocab.coord_ids(tmp_path / "mean")
    known = ids.wildcard
    mean = old[:known].double().mean(0)
    new = tensors(tmp_path / "mean")[EMBED][known:]
    torch.testing.assert_close(new.double(), mean.repeat(1001, 1), atol=1e-6, rtol=0)

    facts = vocab.expand(base, tmp_path / "numeric", "numeric")
    assert facts["init"] == "numeric"
    rows = tensors(tmp_path / "numeric")[EMBED][known + 1 :].double()
    spread = (old[:known].double() - mean).pow(2).mean().sqrt()
    torch.testing.assert_close((rows - mean).pow(2).mean(1).sqrt(), spread.repeat(1000), rtol=1e-4, atol=0)
    torch.testing.assert_close(tensors(tmp_path / "numeric")[EMBED][known].double(), rows.mean(0), rtol=0, atol=1e-6)
    near = torch.cosine_similarity(rows[1:] - mean, rows[:-1] - mean)
    far = torch.cosine_similarity(rows[:500] - mean, rows[500:] - mean)
    assert near.mean() > 0.8 and far.mean() < 0.3
    vocab.expand(base, tmp_path / "again", "numeric")
    again, first = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("again", "numeric"))
    assert again == first


def test_expanding_twice_changes_nothing(tmp_path, capsys):
    base = build(tmp_path / "base")
    first = vocab.expand(base, tmp_path / "one", "numeric")
    assert "already" not in capsys.readouterr().err
    second = vocab.expand(tmp_path / "one", tmp_path / "two")
    expected = f"one already has the coordinate tokens ({first['start']}..{first['end']})"
    assert expected in capsys.readouterr().err
    assert second == first | {"already_expanded": True, "base": weights_identity(tmp_path / "one")}
    for file in (tmp_path / "one").iterdir():
        if file.name not in (vocab.COORD_FILE, checksums.FILE_NAME):
            assert (tmp_path / "two" / file.name).read_bytes() == file.read_bytes()
    assert vocab.expand(tmp_path / "one", tmp_path / "one") == second
    assert first["already_expanded"] is False
    assert vocab.check_tokenizer(tmp_path / "two", tmp_path / "one").start == first["start"]


def test_saving_the_tokenizer_again_keeps_its_hash(tmp_path):
    vocab.expand(build(tmp_path / "base"), tmp_path / "out")
    AutoTokenizer.from_pretrained(tmp_path / "out").save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved/tokenizer.json").read_bytes() != (tmp_path / "out/tokenizer.json").read_bytes()
    assert vocab.check_tokenizer(tmp_path / "saved", tmp_path / "out")


def test_different_ids_are_an_error(tmp_path):
    vocab.expand(build(tmp_path / "base"), tmp_path / "out")
    facts = json.loads((tmp_path / "out" / vocab.COORD_FILE).read_text())
    vocab.expand(build(tmp_path / "smaller", vocab_size=400), tmp_path / "other")
    with pytest.raises(ModelError, match="coordinate ids differ"):
        vocab.check_tokenizer(tmp_path / "other", facts)
    path = tmp_path / "out" / "tokenizer.json"
    content = json.loads(path.read_text())
    path.unlink()
    content["model"]["merges"].reverse()
    path.write_text(json.dumps(content))
    with pytest.raises(ModelError, match="the tokenizer differs"):
        vocab.check_tokenizer(tmp_path / "out", facts)
    with pytest.raises(ModelError, match="the tokenizer differs"):
        vocab.verified_ids(tmp_path / "out")
    (tmp_path / "out" / vocab.COORD_FILE).unlink()
    assert vocab.verified_ids(tmp_path / "out").start == facts["start"]


def test_ids_must_be_complete_and_contiguous(tmp_path):
    base = build(tmp_path / "base")
    with pytest.raises(ModelError, match="1001 of 1001 coordinate tokens are missing"):
        vocab.coord_ids(base)
    vocab.expand(base, tmp_path / "out")
    path = tmp_path / "out" / "tokenizer.json"
    content = json.loads(path.read_text())
    tokens = content["added_tokens"]
    tokens[-1]["content"], tokens[-2]["content"] = tokens[-2]["content"], tokens[-1]["content"]
    path.write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"<\|coord_998\|>: coordinate ids are not contiguous"):
        vocab.coord_ids(tmp_path / "out")
    del tokens[-500:]
    path.write_text(json.dumps(content))
    (tmp_path / "out" / checksums.FILE_NAME).unlink()
    with pytest.raises(ModelError, match="only 501 coordinate tokens are present"):
        vocab.expand(tmp_path / "out", tmp_path / "more")


def test_unsuitable_checkpoints_are_refused(tmp_path):
    base = build(tmp_path / "base")
    with pytest.raises(ModelError, match=r"vocab\.init"):
        vocab.expand(base, tmp_path / "out", "zeros")
    weights = base / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    with pytest.raises(ModelError, match=r"model\.safetensors: file is truncated"):
        vocab.expand(base, tmp_path / "out")
    weights.write_bytes(content[:8] + b"{" * 100 + content[108:])
    with pytest.raises(ModelError, match="damaged safetensors header"):
        vocab.expand(base, tmp_path / "out")
    weights.unlink()
    with pytest.raises(ModelError, match="no weights in the folder"):
        vocab.expand(base, tmp_path / "out")
    weights.write_bytes(content)
    (base / "tokenizer.json").rename(base / "tokenizer.bak")
    with pytest.raises(CoordExpError, match=r"tokenizer\.json: file not found"):
        vocab.expand(base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_shards_are_refused(tmp_path):
    base = build(tmp_path / "base")
    helpers.reshard(base)
    shard = sorted(base.glob("model-*.safetensors"))[1]
    content = shard.read_bytes()
    shard.unlink()
    with pytest.raises(ModelError, match=f"{shard.name}: weight file is missing"):
        vocab.expand(base, tmp_path / "out")
    for broken, message in (
        (content[: len(content) // 2], "file is truncated or has extra bytes; expected"),
        (content[:8] + b"{" * 100 + content[108:], "damaged safetensors header"),
        (b"", "not a safetensors file"),
    ):
        shard.write_bytes(broken)
        with pytest.raises(ModelError, match=f"{shard.name}: {message}"):
            vocab.expand(base, tmp_path / "out")
    shard.write_bytes(content)
    index = base / "model.safetensors.index.json"
    listed = json.loads(index.read_text())
    listed["weight_map"]["model.language_model.extra.weight"] = shard.name
    index.write_text(json.dumps(listed))
    with pytest.raises(ModelError, match=f"{shard.name} does not contain a tensor listed in the index"):
        vocab.expand(base, tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    vocab.expand(build(folder / "base"), folder / "expanded")
    return folder


def test_command_and_its_exit_codes(sound, tmp_path, capsys):
    """0: written, or all checks pass; 1: a check fails or the input is unsuitable; 2: wrong usage."""
    assert cli.main(["expand", str(sound / "base"), "--out", str(tmp_path / "out"), "--init", "mean"]) == 0
    facts = json.loads((tmp_path / "out" / vocab.COORD_FILE).read_text())
    assert f"<|coord_0|>..<|coord_999|> are {facts['start']}..{facts['end']}" in capsys.readouterr().out
    assert facts["init"] == "mean"
    assert cli.main(["expand", str(tmp_path / "out")]) == 0
    assert cli.main(["expand", str(tmp_path / "out"), "--out", str(tmp_path / "again")]) == 0
    assert "already has the coordinate tokens" in capsys.readouterr().err
    assert cli.main(["expand", str(sound / "base"), "--out", str(tmp_path / "out")]) == 2
    assert cli.main(["expand", str(sound / "base")]) == 1
    assert cli.main(["expand", str(tmp_path / "nothing"), "--out", str(tmp_path / "new")]) == 1
    assert "no such checkpoint folder" in capsys.readouterr().err
    with pytest.raises(SystemExit) as usage:
        cli.main(["expand", str(sound / "base"), "--init", "zeros"])
    assert usage.value.code == 2


def swap(tokens: list[dict]) -> None:
    tokens[-1]["content"], tokens[-2]["content"] = tokens[-2]["content"], tokens[-1]["content"]


def lose(tokens: list[dict]) -> None:
    del tokens[-1]


def hide(tokens: list[dict]) -> None:
    tokens[-1]["special"] = True


def swallow(tokens: list[dict]) -> None:
    """The tokenizer has another token that starts with the text of a coordinate token."""
    tokens.append(tokens[-1] | {"id": tokens[-1]["id"] + 1, "content": "<|coord_7|>, "})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lose, "1 of 1001 coordinate tokens are missing, the first is <|coord_999|>"),
        (swap, "coordinate ids are not contiguous"),
        (swallow, "coordinate tokens are not encoded as one id each within an answer"),
        (hide, "encoding and decoding an answer changes it"),
    ],
)
def test_each_failed_check_gives_exit_code_1(sound, tmp_path, capsys, damage, message):
    unchecked = shutil.ignore_patterns(checksums.FILE_NAME)
    folder = Path(shutil.copytree(sound / "expanded", tmp_path / "broken", ignore=unchecked))
    (folder / vocab.COORD_FILE).unlink()
    content = json.loads((folder / "tokenizer.json").read_text())
    damage(content["added_tokens"])
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert cli.main(["expand", str(folder)]) == 1
    assert message in capsys.readouterr().err
    assert cli.main(["expand", str(folder), "--out", str(tmp_path / "out")]) == 1
    assert not (tmp_path / "out").exists()


def test_tokens_in_the_tokenizer_only_fail_the_check(sound, tmp_path, capsys):
    unchecked = shutil.ignore_patterns(checksums.FILE_NAME)
    folder = Path(shutil.copytree(sound / "expanded", tmp_path / "broken", ignore=unchecked))
    for name in ("model.safetensors", "config.json"):
        shutil.copy(sound / "base" / name, folder / name)
    assert cli.main(["expand", str(folder)]) == 1
    assert "coordinate ids are outside the embedding table" in capsys.readouterr().err
    shutil.copy(sound / "expanded" / "model.safetensors", folder)
    assert cli.main(["expand", str(folder)]) == 1
    assert "vocab_size differs from the rows of the embedding table" in capsys.readouterr().err


@pytest.mark.parametrize("job", ["expand", "merge"])
def test_a_killed_job_leaves_no_output_folder(tmp_path, job):
    """SIGKILL while the weights are being written; the rerun succeeds."""
    base = helpers.expanded(tmp_path, tie=True)
    helpers.adapted(base).save_pretrained(tmp_path / "adapter")
    call = {
        "expand": "from coordexp.modeling import vocab; vocab.expand(root / 'base', root / 'out')",
        "merge": "from coordexp.modeling import merge; merge.merge(root / 'expanded', root / 'adapter', root / 'out')",
    }[job]
    slow = """
import pathlib, sys, time
from coordexp.modeling.parallel_writer import Output
root, write = pathlib.Path(sys.argv[1]), Output.write
def slowly(self, position, data):
    write(self, position, data)
    (root / "started").touch()
    time.sleep(60)
Output.write = slowly
"""
    process = subprocess.Popen([sys.executable, "-c", slow + call, str(tmp_path)])
    deadline = time.monotonic() + 60
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.glob(".out.*.part"))
    root = f"import pathlib, sys; root = pathlib.Path(sys.argv[1]); {call}"
    subprocess.run([sys.executable, "-c", root, str(tmp_path)], check=True)
    helpers.load(tmp_path / "out")
