"""A training step: the full objective against ms-swift's cross-entropy; LoRA and DoRA; batch 1 and 8."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.rows import Run, peak_gb, reset_peak, seconds_of, write_row
from benchmarks.unstarted_trainer import batches_of, build_trainer, step

RECIPE = Path(__file__).parents[2] / "config/train/sft_coord_offset.yaml"
LORA = {"use_dora": False, "lora_dropout": 0.0, "freeze_vit": True}
DORA = {**LORA, "use_dora": True}
# full objective with offsets, or cross-entropy; tuner options; images per step
VARIANTS: dict[str, tuple[bool, dict[str, Any], int]] = {
    "plain_lora_b1": (False, LORA, 1),
    "plain_lora_b8": (False, LORA, 8),
    "ours_lora_b1": (True, LORA, 1),
    "ours_lora_b8": (True, LORA, 8),
    "ours_dora_b8": (True, DORA, 8),
    "ours_dora_dropout_b8": (True, {**DORA, "lora_dropout": 0.05}, 8),
    "ours_dora_vit_b8": (True, {**DORA, "freeze_vit": False}, 8),
}
WARM_UP, TIMED = 3, 5


def measure(run: Run, variant: str) -> None:
    """Milliseconds and peak memory of a step, images per second, and the time that the GPU is busy."""
    ours, tuner, batch = VARIANTS[variant]
    began = time.time()
    trainer = _trainer(run, ours, tuner, batch)
    batches = batches_of(trainer)
    ready = time.time() - began
    reset_peak(run.device)
    times = [seconds_of(lambda n=n: step(trainer, batches[n % len(batches)]), run.device) for n in range(WARM_UP)]
    timed = [seconds_of(lambda n=n: step(trainer, batches[n % len(batches)]), run.device) for n in range(TIMED)]
    median = statistics.median(timed)
    write_row(
        run,
        step="train",
        variant=variant,
        seconds_to_load=round(ready, 1),
        tokens=list(batches[0]["input_ids"].shape),
        first_ms=[round(1e3 * t) for t in times],
        step_ms=round(1e3 * median, 1),
        images_per_second=round(batch / median, 2),
        peak_gb=peak_gb(run.device),
    )
    if run.device == "cuda":
        _profile(run, variant, lambda: step(trainer, batches[0]))


def _trainer(run: Run, ours: bool, tuner: dict[str, Any], batch: int) -> Any:
    """An ms-swift trainer that has not started."""
    from coordexp.recipe import load_recipe

    training = {"max_steps": 100, "per_device_train_batch_size": batch, "gradient_accumulation_steps": 1}
    optimizer = "multimodal_coord_offset" if ours else "multimodal"
    overrides = {
        "tuner": {**tuner, "tuner_type": "coordexp" if ours else "lora"},
        "training": {**training, "optimizer": optimizer},
        "data": {"dataloader_num_workers": 0},
        "custom": {
            "train_jsonl": str(run.work / "train.jsonl"),
            "coord_offset": {"enabled": ours},
            "detection_eval": {"every": 0},
        },
    }
    trainer = build_trainer(
        load_recipe(RECIPE, overrides), run.model, run.work / "checkpoints", plain=not ours, use_cpu=run.toy
    )
    trainer.model.to(trainer.args.device)
    trainer._prepare_gradient_checkpointing(trainer.template.get_base_model(trainer.model))
    trainer.template.register_post_encode_hook([trainer.model])
    return trainer


def _profile(run: Run, variant: str, call: Any) -> None:
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        seconds = seconds_of(call, run.device)
    kernels = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    busy = sum(event.device_time for event in kernels) / 1e3
    facts = {"kernels": len(kernels), "gpu_ms": round(busy, 1), "wall_ms": round(1e3 * seconds, 1)}
    write_row(run, step="profile", variant=variant, **facts)
    table = profiler.key_averages().table(sort_by="cuda_time_total", row_limit=40)
    (run.out / f"profile_{variant}.txt").write_text(table)
