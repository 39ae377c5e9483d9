"""Rollouts: sequences are encoded as from scratch, and the answers replace samples of a step."""

from types import SimpleNamespace

import msgspec
import pytest
import torch
from template_cases import encoder_of

from coordexp.answers import render
from coordexp.answers.parse import parse_answer
from coordexp.losses.criterion import DetectionCriterion
from coordexp.losses.options import LossOptions
from coordexp.losses.targets import IGNORE, REJECTED
from coordexp.records import Object, coord_token
from coordexp.sequence_options import RolloutOptions
from coordexp.training.collate import as_targets
from coordexp.training.rollout import rollout_answer

ROLLOUT = RolloutOptions(share=0.5, start=0.0, full=0.0, max_new_tokens=120)
STYLE = render.PromptStyle()


def moved(obj, by):
    bins = [min(round(999 * v) + by, 999) for v in obj.norm]
    return msgspec.structs.replace(obj, norm=[k / 999 for k in bins], bbox_2d=[coord_token(k) for k in bins])


@pytest.fixture(scope="module")
def encoder(shapes_data, tiny_model):
    with encoder_of(tiny_model, train_jsonl=str(shapes_data / "train.coord.jsonl"), rollout=ROLLOUT) as pair:
        yield pair


def encode_with(encode, row, answer, *, rejects=False, verified=None, **options):
    """The row with the sequence of an answer with the objects that `answer` makes of the annotated ones."""
    from coordexp.training.ms_swift.rollouts import SOURCE, encode_rollout

    encoded = encode.encode(dict(row))
    annotated = encoded[SOURCE].sample.record.objects
    parsed = parse_answer(render.render_answer(answer(annotated), STYLE)).objects
    rollout = rollout_answer(parsed, annotated, RolloutOptions(**options), verified)
    return encoded, rollout, encode_rollout(encode, encoded, rollout, rejects=rejects)


def answer_of(encode, encoded, name):
    """The answer's part of `input_ids` or `labels` as text; a label that is ignored is `_`, a rejected one `!`."""
    from coordexp.training.ms_swift.rollouts import SOURCE

    start = encoded[SOURCE].start
    return "".join(
        "_" if n == IGNORE else "!" if n <= REJECTED else encode.tokenizer.decode([n]) for n in encoded[name][start:]
    )


def rows_with(encode, rows, count):
    from coordexp.training.ms_swift.dataset import sample_of

    return next(row for row in rows if len(sample_of(dict(row)).record.objects) == count)


def test_a_perfect_answer_gives_the_ground_truth_sample(encoder):
    encode, rows = encoder
    for row in rows.select(range(4)):
        encoded, _, replaced = encode_with(encode, row, lambda objects: objects)
        assert replaced["input_ids"] == encoded["input_ids"] and replaced["labels"] == encoded["labels"]
        assert replaced["coord_targets"] == encoded["coord_targets"]
        assert torch.equal(replaced["mm_token_type_ids"], encoded["mm_token_type_ids"])


def test_the_model_reads_its_own_boxes_and_is_trained_towards_the_annotations(encoder):
    encode, rows = encoder
    row = rows_with(encode, rows, 2)
    encoded, rollout, replaced = encode_with(encode, row, lambda objects: [moved(objects[1], 9), moved(objects[0], 9)])
    first, second = encoded["coord_targets"].coords[:4], encoded["coord_targets"].coords[4:]
    read = answer_of(encode, replaced, "input_ids")
    targets = answer_of(encode, replaced, "labels")
    own = [moved(obj, 9) for obj in rollout.objects]
    assert read.startswith(render.render_answer(own, STYLE)) and read.endswith("<|im_end|>\n")
    assert targets == render.render_answer(rollout.objects, STYLE) + "<|im_end|>\n"
    assert replaced["coord_targets"].coords == [*second, *first]
    assert replaced["coord_targets"].boxes == [[0, 1, 2, 3], [4, 5, 6, 7]]


def wrong_first(objects):
    """A box where nothing is, described as the first object."""
    return [Object(objects[0].desc, 0, [0.0, 0.0, 1 / 999, 1 / 999], bbox_2d=[coord_token(k) for k in (0, 0, 1, 1)])]


@pytest.mark.parametrize("rejects", [False, True])
def test_a_false_positive_is_context_but_not_a_target(encoder, rejects):
    encode, rows = encoder
    row = rows_with(encode, rows, 1)
    _, rollout, replaced = encode_with(encode, row, lambda o: [*o, *wrong_first(o)], rejects=rejects)
    assert rollout.supervised == [True, False]
    own, wrong = rollout.objects
    assert answer_of(encode, replaced, "input_ids").startswith(render.render_answer([own, wrong], STYLE))
    targets = answer_of(encode, replaced, "labels")
    alone = render.render_answer([own], STYLE)
    opened = alone[: alone.rindex("|>") + 2]
    assert targets.replace("!", "_").startswith(opened + "_") and targets.endswith("_]}]}<|im_end|>\n")
    assert targets.count("!") == rejects
    if rejects:  # after the only object, the answer should have ended
        rejected = REJECTED - next(n for n in replaced["labels"] if n <= REJECTED)
        assert encode.tokenizer.decode([rejected]) == "]},"
    assert replaced["coord_targets"].supervised == sum(label >= 0 for label in replaced["labels"])
    assert len(replaced["coord_targets"].boxes) == 1


def test_a_false_positive_that_may_be_an_object_without_annotation_is_not_rejected(encoder):
    encode, rows = encoder
    row = rows_with(encode, rows, 1)
    _, rollout, replaced = encode_with(encode, row, wrong_first, rejects=True, verified={"another"})
    assert rollout.supervised == [False, True] and rollout.counts.unverified == 1
    assert min(replaced["labels"]) > REJECTED
    _, _, unlabelled = encode_with(encode, row, wrong_first, rejects=False)
    assert replaced["labels"] == unlabelled["labels"]


def test_a_box_before_the_only_object_departs_at_its_first_wrong_coordinate(encoder):
    encode, rows = encoder
    row = rows_with(encode, rows, 1)
    _, rollout, replaced = encode_with(encode, row, wrong_first, rejects=True)
    assert rollout.supervised == [False, True]
    targets = answer_of(encode, replaced, "labels")
    _, before = rollout.objects
    assert targets.index("!") < targets.index("]}") and targets.count("!") == 1
    rejected = REJECTED - next(n for n in replaced["labels"] if n <= REJECTED)
    assert rejected in (encode.coord_start, encode.coord_start + 1)
    assert targets.endswith(render.render_answer([before], STYLE).split('"bbox_2d"')[1] + "<|im_end|>\n")


def test_sets_list_what_remains_after_the_prefix_of_the_model(shapes_data, tiny_model):
    options = {"train_jsonl": str(shapes_data / "train.coord.jsonl"), "rollout": ROLLOUT}
    loss = LossOptions(set_targets="marginal")
    with encoder_of(tiny_model, object_ordering="random", loss=loss, **options) as (encode, rows):
        row = rows_with(encode, rows, 2)
        _, rollout, replaced = encode_with(encode, row, lambda o: [*wrong_first(o), moved(o[1], 5)])
        _, _, plain = encode_with(encode, row, lambda o: [moved(o[1], 5)])
        assert rollout.supervised == [False, True, True]
        # The branch of the first target is the same after a false positive, but for the opening, which is ignored.
        shift = plain["coord_targets"].supervised - replaced["coord_targets"].supervised
        branches, others = replaced["coord_targets"].branches, plain["coord_targets"].branches
        assert branches.slots == others.slots
        assert branches.text == [(position - shift, *rest) for position, *rest in others.text]


def test_a_rejected_token_becomes_less_likely_and_is_not_counted_as_a_label(encoder):
    encode, rows = encoder
    row = rows_with(encode, rows, 1)
    _, _, replaced = encode_with(encode, row, wrong_first, rejects=True)
    batch = encode.data_collator([{k: v for k, v in replaced.items() if k != "coord_source"}])
    labels, targets = batch.pop("labels"), as_targets(batch["coord_targets"])
    logits = torch.randn(*labels.shape, len(encode.tokenizer), requires_grad=True)
    options = LossOptions(weights={"text": 0, "ce": 0, "coord_mass": 0, "unlikelihood": 2})
    loss, report = DetectionCriterion(options, encode.coord_start)(logits, labels, targets)
    at = int((labels[0] <= REJECTED).nonzero())
    token = REJECTED - int(labels[0, at])
    p = logits[0, at - 1].softmax(-1)[token]
    text = int(batch["coord_targets"]["counts"][0])
    assert loss.item() == pytest.approx(-2 * (1 - p).log().item() / text, rel=1e-4)
    assert report.means["unlikelihood"][1] == 1
    (gradient,) = torch.autograd.grad(loss, logits)
    expected = torch.autograd.grad(-2 * (1 - p).log() / text, logits)[0]
    assert torch.allclose(gradient, expected, atol=1e-7)


def test_the_chosen_samples_of_a_step_are_replaced(encoder):
    """The untrained model's answers are unusable, so that all samples stay; then one answer is given."""
    from coordexp.training.ms_swift import rollouts as module

    encode, rows = encoder
    batch = encode.data_collator([encode.encode(dict(row)) for row in rows.select(range(6))])
    kept = batch["coord_targets"]["coord_source"].samples
    trainer = SimpleNamespace(
        template=encode,
        model=encode.model,
        custom_metrics={"train": {}},
        state=SimpleNamespace(global_step=3, max_steps=10),
        _prepare_inputs=lambda inputs: inputs,
    )
    encode.model.model_info = SimpleNamespace(model_dir=encode.model.config._name_or_path)
    rollouts = module.Rollouts(trainer)
    chosen = [rollouts._is_chosen(sample["coord_source"], 0.5) for sample in kept]
    assert any(chosen) and not all(chosen)
    asked = []

    def answer(model, samples):
        asked.extend(samples)
        tokens = encode._tokenize(render.render_answer([], STYLE))
        return [SimpleNamespace(finish="stop", tokens=tokens) for _ in samples]

    module.base_for_generation = lambda trainer: torch.no_grad()
    rollouts._answer = answer
    batches = [dict(batch)]
    rollouts(batches)
    assert [sample["input_ids"] for sample in asked] == [
        sample["input_ids"] for sample, is_chosen in zip(kept, chosen, strict=True) if is_chosen
    ]
    log = {name: metric.compute() for name, metric in trainer.custom_metrics["train"].items()}
    assert log["rollouts"]["total"] == sum(chosen) and log["rollout_missed"]["total"] > 0
    assert torch.equal(batches[0]["labels"], batch["labels"])  # an empty answer gives the annotations in their order
    assert "coord_source" not in batches[0]["coord_targets"]
