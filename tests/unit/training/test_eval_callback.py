"""Scores of a model in training."""

import msgspec
import pytest
from modeling_helpers import adapted, expanded

from coordexp.answers.render import PromptStyle
from coordexp.evaluation.metrics import VALUE_NAMES
from coordexp.geometry.slices import SliceOptions
from coordexp.inference.options import PredictOptions
from coordexp.inference.predictor import Predictor
from coordexp.inference.prompts import Prompt
from coordexp.modeling.merge import merge
from coordexp.recipe import Custom, DetectionEval
from coordexp.records import Detection, Phrase, Prediction, read_records
from coordexp.runtime.errors import ConfigError
from coordexp.runtime.io import write_jsonl


def scorer_of(data, model, **settings):
    from coordexp.training.eval_callback import DetectionScorer

    custom = Custom(val_jsonl=str(data / "val.coord.jsonl"), detection_eval=DetectionEval(every=1, **settings))
    return DetectionScorer(custom, model)


def perfect(record, wrong=0.0):
    facts = record.metadata
    found = [Detection(o.desc, [v + wrong for v in o.norm], 0.9, bins=[0, 0, 1, 1]) for o in record.objects]
    return Prediction(facts.image_id, facts.source_width, facts.source_height, "open", "stop", "", found)


def test_perfect_predictions_score_one_and_shifted_ones_less(shapes_data, tiny_model):
    scorer = scorer_of(shapes_data, tiny_model, images=6)
    records = list(read_records(shapes_data / "val.coord.jsonl", "token"))[:6]
    assert scorer.ground_truth.federated
    scores = scorer.score([perfect(r) for r in reversed(records)])
    assert list(scores)[:-2] == VALUE_NAMES.names() and {"AP", "AP50", "F1_micro"} <= set(scores)
    assert scores.pop("duplicates_per_image") == scores.pop("near_duplicates_per_image") == 0
    assert scores == pytest.approx(dict.fromkeys(scores, 1))
    shifted = scorer.score([perfect(r, 0.02) for r in records])
    assert 0 < shifted["AP"] < 1 and 0 < shifted["F1_micro"] < 1


def test_near_duplicates_are_counted_beside_exact_ones(shapes_data, tiny_model):
    scorer = scorer_of(shapes_data, tiny_model, images=2)
    answers = [perfect(record) for record in scorer.records]
    x1, y1, x2, y2 = answers[0].detections[0].norm
    for height in (0.95, 0.85, 0.5):
        box = [x1, y1, x2, y1 + height * (y2 - y1)]
        answers[0].detections.append(Detection(answers[0].detections[0].desc, box, 0.1 * height))
    scores = scorer.score(answers)
    assert (scores["duplicates_per_image"], scores["near_duplicates_per_image"]) == (0.5, 1.0)


def test_polygons_are_scored_too(shapes_data, tiny_model):
    scorer = scorer_of(shapes_data, tiny_model, images=6)
    answers = [perfect(record) for record in scorer.records]
    for answer in answers:
        for found in answer.detections:
            x1, y1, x2, y2 = found.norm
            found.poly = [x1, y1, x2, y1, x2, y2, x1, y2]
    assert scorer.score(answers)["AP"] == 1


def test_the_prompt_is_that_of_training(shapes_data, tiny_model):
    from coordexp.training.eval_callback import DetectionScorer

    for ratio, protocol in ((0.5, "open"), (1.0, "image_categories")):
        watched = DetectionEval(every=1)
        custom = Custom(val_jsonl=str(shapes_data / "val.coord.jsonl"), detection_eval=watched, category_ratio=ratio)
        assert DetectionScorer(custom, tiny_model).options.protocol == protocol


def test_labels_of_text_integers_are_not_restricted_which_their_grammar_does_not_support():
    from coordexp.training.eval_callback import prompts_like_training

    custom = Custom(category_ratio=1.0, max_named=2)
    assert prompts_like_training(custom)["restrict_labels"]
    integers = msgspec.structs.replace(custom, coord_tokens=msgspec.structs.replace(custom.coord_tokens, enabled=False))
    assert not prompts_like_training(integers)["restrict_labels"]


@pytest.mark.parametrize(
    ("options", "exhaustive", "expected"),
    [
        ({"negatives": 80}, 80, {"protocol": "all_categories", "chunk": 80}),
        ({"negatives": 79}, 80, {"protocol": "image_categories"}),
        ({"negatives": 80}, 0, {"protocol": "image_categories"}),
        ({"negatives": 80, "named_categories": ("cat",)}, 80, {"protocol": "image_categories"}),
    ],
)
def test_absent_categories_are_asked_for_if_every_training_prompt_names_them(options, exhaustive, expected):
    from coordexp.training.eval_callback import prompts_like_training

    assert prompts_like_training(Custom(category_ratio=1.0, **options), exhaustive) == expected


def test_training_on_prompts_of_few_categories_asks_for_every_category_in_turn(shapes_data, tiny_model):
    from coordexp.training.eval_callback import DetectionScorer

    watched = DetectionEval(every=1, images=3, max_new_tokens=2)
    options = {"detection_eval": watched, "category_ratio": 1.0, "max_named": 1}
    scorer = DetectionScorer(Custom(val_jsonl=str(shapes_data / "val.coord.jsonl"), **options), tiny_model)
    assert len(scorer.categories) > 1
    asked = []
    answer = Predictor.stream

    def recording(predictor, requests, capacity):
        requests = list(requests)
        asked.extend(request.prompt.categories for request in requests)
        return answer(predictor, requests, capacity)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Predictor, "stream", recording)
        predictions = scorer.predict(Predictor.from_checkpoint(tiny_model, PredictOptions(), PromptStyle()).model, 0, 1)
    assert sorted(asked) == sorted((name,) for name in scorer.categories * 3)
    assert len(predictions) == 3


def test_ranks_together_predict_all_images(shapes_data, tiny_model):
    scorer = scorer_of(shapes_data, tiny_model, images=5, max_new_tokens=24)
    model = Predictor.from_checkpoint(tiny_model, PredictOptions(), PromptStyle()).model
    everything = scorer.predict(model, 0, 1)
    halves = scorer.predict(model, 0, 2) + scorer.predict(model, 1, 2)
    assert [row.image_id for row in everything] == [r.metadata.image_id for r in scorer.records]
    assert sorted(halves, key=lambda row: row.image_id) == sorted(everything, key=lambda row: row.image_id)


def test_images_are_evaluated_in_slices_on_request(shapes_data, tiny_model):
    slices = SliceOptions(grids=((2, 1),))
    scorer = scorer_of(shapes_data, tiny_model, images=2, max_new_tokens=24, slices=slices)
    predictions = scorer.predict(Predictor.from_checkpoint(tiny_model, PredictOptions(), PromptStyle()).model, 0, 1)
    assert [len(prediction.slices) for prediction in predictions] == [2, 2]
    assert scorer.score(predictions)["AP"] is not None


def test_image_use_and_training_images_are_measured_beside_the_scores(shapes_data, tiny_model):
    from coordexp.training.eval_callback import DetectionScorer

    watched = DetectionEval(every=1, images=4, train_images=3, image_use=4, max_new_tokens=24)
    files = {name: str(shapes_data / f"{name.split('_')[0]}.coord.jsonl") for name in ("train_jsonl", "val_jsonl")}
    scorer = DetectionScorer(Custom(**files, detection_eval=watched), tiny_model)
    model = Predictor.from_checkpoint(tiny_model, PredictOptions(), PromptStyle()).model
    together = scorer.diagnostics(scorer.diagnose(model, 0, 1))
    assert {"train_AP", "train_recall_50", "AP_right_image", "AP_other_image", "answer_agreement"} <= set(together)
    assert abs(together["image_gain"]) < 0.1 and "image" in scorer.caution(together)  # it has random weights
    halves = scorer.diagnostics(scorer.diagnose(model, 0, 2) + scorer.diagnose(model, 1, 2))
    assert halves["logprob_right_image"] == pytest.approx(together["logprob_right_image"])
    assert halves["train_AP"] == together["train_AP"]
    nothing = msgspec.structs.replace(watched, train_images=0, image_use=0)
    assert DetectionScorer(Custom(**files, detection_eval=nothing), tiny_model).diagnose(model, 0, 1) == []


def test_images_without_objects_are_refused(shapes_data, tiny_model, tmp_path):
    from coordexp.training.eval_callback import DetectionScorer

    (tmp_path / "none.jsonl").write_text("")
    custom = Custom(val_jsonl=str(tmp_path / "none.jsonl"), detection_eval=DetectionEval(every=1))
    with pytest.raises(ConfigError, match="no object"):
        DetectionScorer(custom, tiny_model)


@pytest.mark.parametrize("tie", [True, False])
def test_an_unmerged_adapter_predicts_the_same_as_its_merged_checkpoint(tmp_path, tie):
    from PIL import Image

    base = expanded(tmp_path, tie=tie)
    adapter = adapted(base, dora=True)
    adapter.save_pretrained(tmp_path / "adapter")
    merge(base, tmp_path / "adapter", tmp_path / "merged")
    options, style = PredictOptions(max_new_tokens=60), PromptStyle()
    merged = Predictor.from_checkpoint(tmp_path / "merged", options, style)
    live = Predictor(adapter.get_base_model(), merged.processor, merged.ids, options, style)
    images = [Image.effect_noise((96, 64), 80).convert("RGB"), Image.new("RGB", (64, 64), (200, 30, 30))]
    questions = [Prompt()] * 2
    for ours, theirs in zip(live.answer(images, questions), merged.answer(images, questions), strict=True):
        assert ours.tokens == theirs.tokens
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)


@pytest.mark.parametrize("ratio", [1.0, 0.6])
def test_training_on_phrases_is_scored_by_the_metrics_of_phrases(ratio, shapes_data, tiny_model, tmp_path):
    from coordexp.training.eval_callback import DetectionScorer

    records = list(read_records(shapes_data / "val.coord.jsonl", "token"))[:4]
    for n, record in enumerate(records):
        record.phrases = [Phrase(f"first of {n}", [0]), Phrase("nothing", [])] if record.objects else []
    write_jsonl(tmp_path / "val.coord.jsonl", records)
    watched = DetectionEval(every=1, images=4, metric="phrase_accuracy_50", max_new_tokens=2)
    custom = Custom(val_jsonl=str(tmp_path / "val.coord.jsonl"), detection_eval=watched, phrase_ratio=ratio)
    scorer = DetectionScorer(custom, tiny_model)
    assert scorer.options.protocol == "phrases"
    answers = []
    for record in records:
        found = [Detection(p.text, list(record.objects[i].norm_box), 0.9) for p in record.phrases for i in p.objects]
        answers.append(msgspec.structs.replace(perfect(record), protocol="phrases", detections=found))
    scores = scorer.score(answers)
    assert scores["phrase_accuracy_50"] == scores["phrase_no_target_accuracy"] == scores["phrase_exact_50"] == 1
    assert scores["phrase_recall_50"] is None and "AP" not in scores
    for record in records:
        record.phrases = [Phrase("nothing", [])]
    write_jsonl(tmp_path / "val.coord.jsonl", records)
    model = Predictor.from_checkpoint(tiny_model, PredictOptions(), PromptStyle()).model
    assert DetectionScorer(custom, tiny_model).diagnose(model, 0, 1) == []  # no coordinates to measure
    for record in records:
        record.phrases = []
    write_jsonl(tmp_path / "val.coord.jsonl", records)
    with pytest.raises(ConfigError, match="have no phrases"):
        DetectionScorer(custom, tiny_model)
