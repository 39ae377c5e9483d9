"""Selection of the best checkpoint and early stopping."""

from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerControl, TrainerState

from coordexp.recipe import DetectionEval


def run_of(values, **settings):
    """Steps 10, 20, ... with these numbers: (state, steps at which a checkpoint is saved, step of the end)."""
    from coordexp.training.ms_swift.best_checkpoint import BestCheckpointCallback

    callback = BestCheckpointCallback(SimpleNamespace(), SimpleNamespace())
    callback.settings = DetectionEval(every=10, **settings)
    state, saved, numbers = TrainerState(max_steps=10 * len(values)), [], iter(values)

    def evaluate():
        value = next(numbers)
        state.log_history.append({"eval_AP": value, "step": state.global_step})
        return value

    callback._evaluate = evaluate
    for step in range(1, 10 * len(values) + 1):
        state.global_step, control = step, TrainerControl()
        callback.on_step_end(None, state, control)
        saved += [step] * control.should_save
        if control.should_training_stop:
            break
    return state, saved, step


def test_the_last_of_equal_values_is_best():
    state, saved, end = run_of([0.1, 0.3, 0.3, 0.2])
    assert (state.best_global_step, state.best_metric, saved, end) == (30, 0.3, [10, 20, 30], 40)
    state, saved, _ = run_of([0.0, 0.0, 0.0])  # the least trained checkpoint must not be the result
    assert (state.best_global_step, saved) == (30, [10, 20, 30])


def test_patience_counts_evaluations_without_improvement():
    state, saved, end = run_of([0.1, 0.0, 0.2, 0.2, 0.1, 0.9], patience=2)
    assert (state.best_global_step, end) == (40, 50)
    assert saved == [10, 30, 40, 50]


def test_evaluation_restores_modes_and_random_numbers():
    from coordexp.training.ms_swift.best_checkpoint import evaluation_mode

    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(2, 2)).train()
    model[1].eval()
    state = torch.get_rng_state()
    with evaluation_mode(model):
        assert not model[0].training
        assert not model[1](torch.rand(1, 2)).requires_grad
    assert model[0].training and not model[1].training
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("every", "due"), [("epoch", [5, 10, 12]), (4, [4, 8, 12]), (5, [5, 10, 12])])
def test_evaluation_is_due_every_n_steps_or_epochs_and_at_the_end(every, due):
    settings = DetectionEval(every=every)
    assert [step for step in range(1, 13) if settings.is_due(step, step / 5, 12)] == due


def test_every_epoch_is_saved_so_that_a_killed_run_resumes_there():
    from coordexp.training.ms_swift.best_checkpoint import BestCheckpointCallback

    callback = BestCheckpointCallback(SimpleNamespace(), SimpleNamespace())
    callback.settings, callback._evaluate = DetectionEval(every="epoch"), lambda: 0.0
    state, control = TrainerState(max_steps=9, global_step=3, epoch=1.0, best_metric=0.5), TrainerControl()
    callback.on_step_end(None, state, control)
    assert control.should_save and not control.should_training_stop
