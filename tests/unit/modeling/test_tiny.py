"""The tiny model as an ordinary Qwen3-VL checkpoint, reproducible by seed, and the sources of base models."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import unicodedata
from pathlib import Path

import modeling_helpers as helpers
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from coordexp.answers.render import PromptStyle, chat, hf_chat
from coordexp.modeling import base_model as fetch
from coordexp.modeling import checkpoint_files as contents
from coordexp.modeling import qwen_tokenizer, tiny, vocab
from coordexp.runtime.errors import ConfigError, ModelError, SpaceError
from coordexp.runtime.output_guard import MARKER


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("tiny") / "base", seed=7)


@pytest.fixture(scope="module")
def processor(folder):
    return AutoProcessor.from_pretrained(folder)


def test_the_same_seed_gives_the_same_bytes_in_another_process(folder, tmp_path):
    code = "import sys; from coordexp.modeling import tiny; tiny.build(sys.argv[1], seed=int(sys.argv[2]))"
    helpers.in_fresh_process(code, tmp_path / "same", 7)
    tiny.build(tmp_path / "other", seed=8)

    def digest(where: Path) -> dict[str, str]:
        return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in where.iterdir()}

    assert digest(tmp_path / "same") == digest(folder)
    differing = {name for name, value in digest(tmp_path / "other").items() if digest(folder)[name] != value}
    assert differing == {"model.safetensors"}


def test_plain_transformers_loads_it(folder, processor):
    model = helpers.load(folder)
    assert type(model).__name__ == "Qwen3VLForConditionalGeneration"
    assert type(processor).__name__ == "Qwen3VLProcessor"
    assert type(processor.tokenizer).__name__.startswith("Qwen2Tokenizer")
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert 1_000_000 < sum(p.numel() for p in model.parameters()) < 3_000_000
    assert model.generation_config.eos_token_id == processor.tokenizer.convert_tokens_to_ids(
        ["<|im_end|>", "<|endoftext|>"]
    )
    text = processor.apply_chat_template(hf_chat(PromptStyle()), add_generation_prompt=True)
    inputs = processor(text=[text], images=[Image.new("RGB", (96, 96), "red")], return_tensors="pt")
    assert torch.isfinite(helpers.logits(model, inputs)).all()


@pytest.mark.parametrize(
    ("size", "tiles"), [((96, 96), 9), ((64, 64), 4), ((96, 64), 6), ((1024, 1024), 1024), ((640, 416), 260)]
)
def test_images_on_the_grid_are_never_resized(processor, size, tiles):
    grid = processor.image_processor(images=[Image.new("RGB", size)], return_tensors="pt")["image_grid_thw"][0]
    assert grid.tolist() == [1, size[1] // 16, size[0] // 16]
    assert grid.prod().item() // 4 == tiles


def test_every_byte_and_the_special_tokens_round_trip(processor):
    tokenizer = processor.tokenizer
    text = "".join(map(chr, range(1, 0x250))) + "物体 🦒 e\u0301"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)
    names = [name for name, _ in qwen_tokenizer.QWEN_ADDED_TOKENS]
    first = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert tokenizer.convert_tokens_to_ids(names) == list(range(first, first + 26))
    assert len(tokenizer) == first + 26 == 1050
    assert tokenizer("4207").input_ids == [tokenizer.convert_tokens_to_ids(d) for d in "4207"]
    answer = '{"objects": [{"desc": "red circle", "bbox_2d": ['
    assert len(tokenizer(answer).input_ids) <= 20


def test_chat_template_gives_the_prompt_of_qwen3_vl(processor):
    image = {"type": "image", "image": "x.jpg"}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [image, {"type": "text", "text": "What?"}, {"type": "video"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
    ]
    assert processor.apply_chat_template(messages) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What?"
        "<|vision_start|><|video_pad|><|vision_end|><|im_end|>\n"
        "<|im_start|>assistant\nA cat.<|im_end|>\n"
    )
    prompt = processor.apply_chat_template(messages[1:2], add_generation_prompt=True)
    assert prompt.endswith("<|im_end|>\n<|im_start|>assistant\n") and prompt.startswith("<|im_start|>user\n")


def test_ms_swift_encodes_the_same_ids(folder, tmp_path):
    """ms-swift's qwen3_vl template gives the same ids as the processor's chat template."""
    pytest.importorskip("swift")
    from swift.model import get_processor
    from swift.template import TemplateInputs, get_template

    vocab.expand(folder, tmp_path / "expanded")
    processor = get_processor(str(tmp_path / "expanded"), model_type="qwen3_vl")
    template = get_template(processor)
    template.image_token_id = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    template.set_mode("train")
    image = Image.new("RGB", (96, 96), "red")
    answer = '{"objects": [{"desc": "red circle", "bbox_2d": [<|coord_0|>, <|coord_5|>, <|coord_99|>, <|coord_999|>]}]}'
    style = PromptStyle()
    messages = chat(style, None, answer)
    encoded = template.encode(TemplateInputs.from_dict({"messages": messages, "images": [image]}))
    plain = AutoProcessor.from_pretrained(tmp_path / "expanded")
    text = plain.apply_chat_template(hf_chat(style), add_generation_prompt=True) + answer + "<|im_end|>\n"
    expected = plain(text=[text], images=[image], return_tensors="pt")["input_ids"][0].tolist()
    found = list(encoded["input_ids"])
    assert found == expected[: len(found)] and len(expected) - len(found) <= 1  # the final line break is optional
    assert sum(i == template.image_token_id for i in found) == 9


@pytest.mark.parametrize("options", [{"hiden": 3}, {"layers": "four"}])
def test_invalid_options_are_named(tmp_path, options):
    with pytest.raises(ModelError, match="options are hidden, layers"):
        tiny.build(tmp_path / "out", 1, **options)
    assert not (tmp_path / "out").exists()


def test_fetch_tiny_and_path(folder, tmp_path):
    facts = fetch.fetch("tiny", {"source": "tiny", "seed": 7}, tmp_path / "made")
    assert facts["name"] == "tiny"
    assert (tmp_path / "made/model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    (folder / "notes.md").write_text("not part of a checkpoint")
    facts = fetch.fetch("own", {"source": "path", "path": str(folder)}, tmp_path / "own")
    names = {f.name for f in (tmp_path / "own").iterdir()}
    assert names == {f.name for f in folder.iterdir()} - {"notes.md"} | {fetch.SOURCE_FILE, MARKER}
    assert facts["files"] == "linked"
    weights, config = (
        [(parent / name).stat().st_ino for parent in (tmp_path / "own", folder)]
        for name in ("model.safetensors", "config.json")
    )
    assert weights[0] == weights[1] and config[0] != config[1]  # a file that people edit is a copy
    assert json.loads((tmp_path / "own" / fetch.SOURCE_FILE).read_text())["path"] == f".../{folder.name}"
    helpers.load(tmp_path / "own")


def test_the_manifest_identifies_weights_and_tokenizers(folder, tmp_path):
    own = Path(shutil.copytree(folder, tmp_path / "own"))

    def recorded() -> dict[str, str]:
        return fetch.fetch("own", {"source": "path", "path": str(own)}, tmp_path / "out")["contents"]

    before = recorded()
    assert before == contents.checkpoint_identity(own) == contents.recorded_identity(tmp_path / "out")
    assert set(before) == {file.name for file in (tmp_path / "out").iterdir()} - {fetch.SOURCE_FILE, MARKER}
    for name in ("model.safetensors", "tokenizer.json"):
        data = (own / name).read_bytes()
        (own / name).unlink()  # another file, not new content of the linked one
        (own / name).write_bytes(data[:-2] + b"\0\1" if name.endswith("tensors") else data + b"\n")
        after = recorded()
        assert {key for key in before if before[key] != after[key]} == {name}
        before = after


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"source": "hff"}, "did you mean 'hf'"),
        ({"source": "hf", "repo": "a/b"}, r"models\.m\.revision: missing key"),
        ({"source": "path"}, r"models\.m\.path: missing key"),
        ({"source": "path", "path": "/no/such/folder"}, "no such folder"),
    ],
)
def test_invalid_entries_are_named(tmp_path, entry, message):
    with pytest.raises(ConfigError, match=message):
        fetch.fetch("m", entry, tmp_path / "out")


def test_incomplete_folder_is_refused(folder, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(ConfigError, match=r"config\.json"):
        fetch.fetch("m", {"source": "path", "path": str(broken)}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("source", ["hf", pytest.param("modelscope", marks=pytest.mark.slow)])
def test_the_error_without_network_says_what_to_do(tmp_path, source):
    code = """
        import sys
        from coordexp.runtime.errors import DownloadError
        from coordexp.modeling import base_model as fetch
        entry = {"source": sys.argv[1], "repo": "nobody/nothing", "revision": "0" * 40}
        try:
            fetch.fetch("big", entry, sys.argv[2])
        except DownloadError as error:
            print(error)
    """
    closed = dict.fromkeys(("HF_ENDPOINT", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
    closed |= {"MODELSCOPE_DOMAIN": "127.0.0.1:9", "no_proxy": "", "HF_HUB_DOWNLOAD_TIMEOUT": "1"}
    done = helpers.in_fresh_process(code, source, tmp_path / "out", environ=closed)
    assert "models.big: cannot fetch nobody/nothing from" in done.stdout
    assert "{source: path, path: /folder/of/the/checkpoint}" in done.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("source", ["hf", "modelscope"])
def test_a_hub_provides_the_pinned_files(folder, tmp_path, monkeypatch, source):
    asked = {}

    def snapshot_download(repo, revision, allow_patterns):
        asked.update(repo=repo, revision=revision, patterns=allow_patterns)
        return str(folder)

    module = {"hf": "huggingface_hub", "modelscope": "modelscope"}[source]
    monkeypatch.setattr(f"{module}.snapshot_download", snapshot_download)
    facts = fetch.fetch("big", {"source": source, "repo": "a/b", "revision": "abc"}, tmp_path / "out")
    assert asked == {"repo": "a/b", "revision": "abc", "patterns": [*contents.PATTERNS, *contents.LICENCES]}
    assert facts["revision"] == "abc"
    helpers.load(tmp_path / "out")


@pytest.mark.parametrize("source", ["hf", "modelscope"])
def test_a_full_disk_under_the_cache_is_not_reported_as_a_network_error(tmp_path, monkeypatch, capsys, source):
    module, variable = {"hf": ("huggingface_hub", "HF_HOME"), "modelscope": ("modelscope", "MODELSCOPE_CACHE")}[source]

    def snapshot_download(repo, revision, allow_patterns):
        raise RuntimeError("download failed") from OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(f"{module}.snapshot_download", snapshot_download)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache" / "hub"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(SpaceError, match="the disk is full") as caught:
        fetch.fetch("big", {"source": source, "repo": "a/b", "revision": "abc"}, tmp_path / "out")
    assert str(caught.value).startswith(str(tmp_path / "cache")) and variable in str(caught.value)
    assert "network" not in str(caught.value)
    printed = capsys.readouterr().err
    assert f"fetch a/b: downloading to {tmp_path / 'cache'}" in printed and variable in printed
