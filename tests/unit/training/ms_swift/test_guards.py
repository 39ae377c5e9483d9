"""Training refuses a start that contradicts the recipe, resumes by key, and stops at a non-finite loss or gradient."""

from pathlib import Path
from types import SimpleNamespace

import modeling_helpers as helpers
import pytest
import torch

from coordexp.losses.criterion import Counts, DetectionCriterion
from coordexp.losses.targets import Targets
from coordexp.modeling import tiny, vocab
from coordexp.recipe import CoordOffset, CoordTokens, Custom, DetectionEval, load_recipe
from coordexp.runtime.errors import ConfigError, DataError
from coordexp.runtime.io import write_json
from coordexp.training.identity import training_key
from coordexp.training.ms_swift.loss import CoordLoss
from coordexp.training.ms_swift.trainer import MAX_SKIPPED_STEPS, CoordTrainer, check_start

GOOD = Counts(text=50, coordinate=8, box=2)
WEIGHTS = {"model.layers.0.q_proj.lora_A": 64}
OFFSETS = {**WEIGHTS, "base_model.model.coord_offset_adapter.embed": 96_000}


def test_a_start_that_agrees_with_the_recipe_is_accepted():
    check_start(GOOD, WEIGHTS, Custom())
    check_start(GOOD, OFFSETS, Custom(coord_offset=CoordOffset(enabled=True)))
    check_start(Counts(50, 0, 0), WEIGHTS, Custom(coord_tokens=CoordTokens(enabled=False)))


@pytest.mark.parametrize(
    ("counts", "trainable", "custom", "message"),
    [
        (Counts(0, 8, 2), WEIGHTS, Custom(), "no text is supervised"),
        (Counts(50, 0, 0), WEIGHTS, Custom(), "the samples have 0 coordinate slots"),
        (GOOD, {}, Custom(), "no parameter is trainable"),
        (GOOD, WEIGHTS, Custom(coord_offset=CoordOffset(enabled=True)), r"the trainable offsets are \[\]"),
        (GOOD, OFFSETS, Custom(), "coord_offset.enabled is False"),
    ],
)
def test_a_start_that_contradicts_the_recipe_is_refused(counts, trainable, custom, message):
    with pytest.raises(ConfigError, match=message):
        check_start(counts, trainable, custom)


def test_a_non_finite_loss_names_the_records():
    loss = CoordLoss.__new__(CoordLoss)
    loss.criterion = DetectionCriterion(Custom().loss, 10)
    loss.trainer = SimpleNamespace(state=SimpleNamespace(global_step=7, max_steps=9))
    nothing = torch.zeros(0, dtype=torch.long)
    targets = Targets(torch.zeros(0), torch.zeros(0, 4, dtype=torch.long), nothing, nothing)
    logits = torch.full((1, 3, 1010), float("nan"))
    outputs = SimpleNamespace(logits=logits, coord_targets=targets, source_lines=["train.coord.jsonl:12"])
    with pytest.raises(DataError, match=r"nan at step 7(.|\n)*train\.coord\.jsonl:12"):
        loss(outputs, torch.tensor([[-100, 3, 4]]))


@pytest.fixture
def trainer(monkeypatch):
    """A trainer on a CPU: ms-swift sets `fp16` there for float32, but there is no scaler."""
    monkeypatch.setattr(CoordTrainer.__base__, "_get_grad_norm", lambda self, model, grad_norm=None: grad_norm)
    trainer = CoordTrainer.__new__(CoordTrainer)
    trainer.args, trainer.state = SimpleNamespace(fp16=True), SimpleNamespace(global_step=7)
    trainer.accelerator, trainer.is_deepspeed_enabled = SimpleNamespace(scaler=None), False
    trainer.source_lines = ["train.coord.jsonl:12"]
    return trainer


def deepspeed(trainer, **fp16):
    plugin = SimpleNamespace(deepspeed_config={"fp16": fp16})
    trainer.is_deepspeed_enabled, trainer.accelerator.state = True, SimpleNamespace(deepspeed_plugin=plugin)


def test_a_non_finite_gradient_stops_training(trainer):
    for _ in ("plain", "DeepSpeed in another type than fp16"):
        assert trainer._get_grad_norm(None, torch.tensor(2.5)) == 2.5
        for norm in (torch.tensor(float("inf")), float("nan")):
            with pytest.raises(DataError, match=r"norm is (inf|nan) at step 7(.|\n)*records: train\.coord\.jsonl:12"):
                trainer._get_grad_norm(None, norm)
        deepspeed(trainer, enabled=False)


@pytest.mark.parametrize("scaler", ["torch", "deepspeed"])
def test_a_gradient_scaler_may_skip_a_limited_number_of_steps(trainer, scaler):
    """An infinite norm in the log would not be JSON."""
    trainer.accelerator.scaler = object() if scaler == "torch" else None
    if scaler == "deepspeed":
        deepspeed(trainer, enabled=True)
    for _ in ("twice", "a finite step restarts the count"):
        assert [trainer._get_grad_norm(None, float("inf")) for _ in range(MAX_SKIPPED_STEPS - 1)] == [None] * (
            MAX_SKIPPED_STEPS - 1
        )
        assert trainer._get_grad_norm(None, 2.5) == 2.5
    for _ in range(MAX_SKIPPED_STEPS - 1):
        trainer._get_grad_norm(None, float("nan"))
    with pytest.raises(DataError, match="norm is nan at step 7, 32 consecutive steps"):
        trainer._get_grad_norm(None, float("nan"))


@pytest.fixture
def key_of(tmp_path):
    """Key of a run of a tiny base with this `custom` section."""
    vocab.expand(tiny.build(tmp_path / "base", 3, **helpers.SMALL), tmp_path / "model")
    recipe = Path(__file__).parents[4] / "config/train/sft_base.yaml"
    return lambda **custom: training_key(load_recipe(recipe, {"custom": custom}), tmp_path / "model")


def test_the_key_of_a_run_depends_on_all_files_of_a_mixture(key_of, tmp_path):
    names = ("a.jsonl", "a.categories.json", "base.yaml", "mixture.yaml")
    data, table, base, mixture = (tmp_path / name for name in names)
    data.write_text("{}\n")
    table.write_text("{}")
    base.write_text("seed: 1")
    mixture.write_text("extends: base.yaml\nsources: {a: {jsonl: a.jsonl, categories: a.categories.json}}")
    keys = [key_of(fusion_config=str(mixture))]
    assert key_of(fusion_config=str(mixture)) == keys[0]
    longer = mixture.read_text() + "\nepoch_size: 3"
    for file, text in ((data, "{} \n"), (table, "{} "), (base, "seed: 2"), (mixture, longer)):
        file.write_text(text)
        keys.append(key_of(fusion_config=str(mixture)))
    assert len(set(keys)) == 5


def test_the_key_of_a_run_depends_on_how_images_were_made_but_not_on_their_folder(key_of, tmp_path):
    keys = []
    for name, quality in (("one", 95), ("other", 95), ("one", 80)):
        folder = tmp_path / name
        made = {"image_dirs": [str(folder)], "jpeg_quality": quality}
        write_json(folder / "images/train/.images.json", made)
        (folder / "train.jsonl").write_text("{}\n")
        keys.append(key_of(train_jsonl=str(folder / "train.jsonl")))
    assert keys[0] == keys[1] != keys[2]


def test_detection_selects_the_checkpoint_if_enabled(monkeypatch):
    """An evaluation loss at the same steps does not."""
    monkeypatch.setattr("swift.trainers.Seq2SeqTrainer._determine_best_metric", lambda *_, **__: True)
    trainer = CoordTrainer.__new__(CoordTrainer)
    for every, chosen in ((0, True), (10, False)):
        custom = Custom(detection_eval=DetectionEval(every=every))
        monkeypatch.setattr("coordexp.training.ms_swift.trainer.custom_section", lambda custom=custom: custom)
        assert trainer._determine_best_metric(metrics={"eval_loss": 1.0}, trial=None) is chosen


def test_the_key_of_a_run_depends_on_recipe_data_weights_and_tokenizer(tmp_path):
    root = Path(__file__).parents[4]
    vocab.expand(tiny.build(tmp_path / "base", 3, **helpers.SMALL), tmp_path / "model")
    data = tmp_path / "train.jsonl"
    data.write_text("{}\n")

    def key(**training) -> str:
        custom = {"train_jsonl": str(data)}
        overrides = {"training": training, "custom": custom}
        return training_key(load_recipe(root / "config/train/sft_base.yaml", overrides), tmp_path / "model")

    keys = [key(), key(max_steps=7)]
    assert key() == keys[0]
    data.write_text("{} \n")
    keys.append(key())
    for name, tensor in (("model.safetensors", "model.language_model.norm.weight"), ("tokenizer.json", None)):
        file = tmp_path / "model" / name
        if tensor:
            helpers.rewrite(file.parent, name, lambda tensors, tensor=tensor: tensors[tensor].add_(1))
        else:
            file.write_text(file.read_text() + " ")
        keys.append(key())
    assert len(set(keys)) == 5
