"""The registered ms-swift template on a real processor, for tests of training samples."""

import json
from contextlib import contextmanager
from types import SimpleNamespace

import msgspec
import pytest

from coordexp.modeling.families import family_of
from coordexp.recipe import Custom


@contextmanager
def encoder_of(model, **custom):
    """The registered template on a real processor under a recipe, and the rows of its training file."""
    from swift.model import get_processor
    from swift.template import get_template
    from transformers import AutoModelForImageTextToText

    from coordexp.training.ms_swift import custom_section as settings
    from coordexp.training.ms_swift import dataset, template
    from coordexp.training.ms_swift import model_loader as loader

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(settings.VARIABLE, json.dumps(msgspec.to_builtins(Custom(**custom))))
        patch.setenv("IMAGE_MIN_TOKEN_NUM", "1")
        settings.custom_section.cache_clear()
        dataset.samples.cache_clear()
        for module in (dataset, template, loader):
            module.register()
        names = family_of(model).swift
        processor = get_processor(str(model), model_type=names.our_model_type)
        encode = get_template(processor, template_type=names.our_template, truncation_strategy="raise", max_length=2048)
        encode.set_mode("train")
        encode.model = AutoModelForImageTextToText.from_pretrained(model)
        yield encode, dataset._Loader().load(dataset_meta=SimpleNamespace(dataset_name=dataset.TRAIN))
        settings.custom_section.cache_clear()
        dataset.samples.cache_clear()
