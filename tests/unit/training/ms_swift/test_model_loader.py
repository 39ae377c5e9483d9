"""ms-swift never runs code from a checkpoint folder, and does not say that it does."""

import json
import logging
import shutil

import pytest
from swift.model import MODEL_MAPPING, get_model_processor, get_processor
from swift.utils import get_logger

from coordexp.modeling.families import FAMILIES
from coordexp.training.ms_swift import model_loader

CODE = """
import pathlib
pathlib.Path({ran!r}).touch()
from transformers import Qwen3VLConfig as Config, Qwen3VLForConditionalGeneration as Model
from transformers import Qwen3VLProcessor as Processor
from transformers import Qwen2TokenizerFast as Tokenizer
"""
CLASSES = {"AutoConfig": "Config", "AutoModel": "Model", "AutoModelForCausalLM": "Model", "AutoProcessor": "Processor"}
CLASSES |= {"AutoModelForImageTextToText": "Model", "AutoTokenizer": "Tokenizer"}
OURS = FAMILIES["qwen3_vl"].swift.our_model_type


@pytest.fixture
def checkpoint_with_code(tiny_model, tmp_path):
    """(checkpoint whose files name classes of a Python file for everything, file that appears when it runs)."""
    folder, ran = tmp_path / "checkpoint", tmp_path / "ran"
    shutil.copytree(tiny_model, folder)
    (folder / "code.py").write_text(CODE.format(ran=str(ran)))
    for name in ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json"):
        path = folder / name
        content = json.loads(path.read_text()) if path.exists() else {}
        content["auto_map"] = {auto: f"code.{own}" for auto, own in CLASSES.items()}
        content["auto_map"]["AutoTokenizer"] = [None, "code.Tokenizer"]
        path.write_text(json.dumps(content | ({"model_type": "unknown"} if name == "config.json" else {})))
    return folder, ran


@pytest.mark.parametrize("name", FAMILIES.names())
def test_loaders_do_not_trust_code(name):
    model_loader.register()
    assert MODEL_MAPPING[FAMILIES[name].swift.our_model_type].loader.default_trust_remote_code is False


@pytest.mark.parametrize("load", [get_processor, get_model_processor])
def test_code_of_a_checkpoint_is_not_executed(checkpoint_with_code, load):
    folder, ran = checkpoint_with_code
    model_loader.register()
    with pytest.raises((ValueError, AttributeError, KeyError)):
        load(str(folder), model_type=OURS)
    assert not ran.exists()


def test_the_log_does_not_say_that_code_is_trusted(tiny_model):
    model_loader.register()
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    get_logger().addHandler(handler)
    try:
        get_processor(str(tiny_model), model_type=OURS)
    finally:
        get_logger().removeHandler(handler)
    assert not [message for message in messages if "trust_remote_code" in message]
