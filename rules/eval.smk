# Predictions, calibrated scores, and the evaluation.


localrules:
    gather,


rule predict:
    """Predict one shard of the images: decode answers under the grammar and score their boxes."""
    input:
        records=predicted,
        images=lambda w: settings.images(predicted(w)),
        source=lambda w: evaluated_source(w) if w.part == "eval" else source_of(w, "val"),
        model=lambda w: f"{settings.merged(w.run)}/merge_manifest.json",
    output:
        predictions=f"{RESULTS}/{{run}}/{{part}}/shards/{{shard}}-of-{{shards}}.jsonl",
    log:
        f"{RESULTS}/{{run}}/logs/predict.{{part}}.{{shard}}-of-{{shards}}.log",
    benchmark:
        f"{RESULTS}/{{run}}/benchmarks/predict.{{part}}.{{shard}}-of-{{shards}}.tsv"
    conda:
        lambda w: "../envs/vllm.yaml" if settings.run(w.run).predict.engine == "vllm" else "../envs/train.yaml"
    threads: lambda w: settings.run(w.run).train.threads
    resources:
        mem_mb=memory(small=4000, large=32000),
        runtime=lambda w: settings.size(w.run, small=30, large=720),
        gpu=lambda w: settings.size(w.run, small=0, large=1),
    params:
        config=lambda w: keys(**prediction_of(w), desc=settings.run(w.run).data.desc),
        code=code("predict"),
    shell:
        "python -m workflow_scripts.predict --config {params.config:q} --records {input.records:q}"
        " --source {input.source:q} --model {input.model:q} --predictions {output.predictions:q}"
        " --shard {wildcards.shard} --shards {wildcards.shards} --threads {threads} --gpus {resources.gpu}"
        " > {log:q} 2>&1"


rule gather:
    """Concatenate the shards in the order of the records, and calibrate the scores if the run has a calibration."""
    input:
        shards=shards_of,
        records=predicted,
        calibration=lambda w: calibration_of(w) if w.part == "eval" else [],
    output:
        predictions=f"{RESULTS}/{{run}}/{{part}}/predictions.jsonl",
    log:
        f"{RESULTS}/{{run}}/logs/gather.{{part}}.log",
    benchmark:
        f"{RESULTS}/{{run}}/benchmarks/gather.{{part}}.tsv"
    conda:
        "../envs/train.yaml"
    threads: 1
    resources:
        mem_mb=memory(1000),
        runtime=10,
    params:
        code=code("gather"),
    shell:
        "python -m workflow_scripts.gather --shards {input.shards:q} --records {input.records:q}"
        " --calibration {input.calibration:q} --predictions {output.predictions:q} > {log:q} 2>&1"


rule calibrate:
    """Fit the map from raw scores to the probability of being correct, on images held back from training."""
    input:
        predictions=f"{RESULTS}/{{run}}/calibration/predictions.jsonl",
        records=lambda w: settings.records(w.run, "calibration"),
        source=lambda w: source_of(w, "train"),
        trained_on=lambda w: settings.mixture(w.run, tables=False)[1:] or settings.trained_on(w.run, "train"),
    output:
        calibration=f"{RESULTS}/{{run}}/calibration.json",
    log:
        f"{RESULTS}/{{run}}/logs/calibrate.log",
    benchmark:
        f"{RESULTS}/{{run}}/benchmarks/calibrate.tsv"
    conda:
        "../envs/train.yaml"
    threads: 1
    resources:
        mem_mb=memory(2000),
        runtime=30,
    params:
        config=lambda w: keys(method=settings.run(w.run).calibrate.method),
        code=code("calibrate"),
    shell:
        "python -m workflow_scripts.calibrate --config {params.config:q} --predictions {input.predictions:q}"
        " --records {input.records:q} --source {input.source:q} --trained-on {input.trained_on:q}"
        " --calibration {output.calibration:q} > {log:q} 2>&1"


rule evaluate:
    """Compute LVIS and COCO metrics against the original annotation file, and count all dropped detections and annotations."""
    input:
        predictions=f"{RESULTS}/{{run}}/eval/predictions.jsonl",
        source=evaluated_source,
        records=evaluated,
    output:
        numbers=f"{RESULTS}/{{run}}/eval.json",
    log:
        f"{RESULTS}/{{run}}/logs/evaluate.log",
    benchmark:
        f"{RESULTS}/{{run}}/benchmarks/evaluate.tsv"
    conda:
        "../envs/eval.yaml"
    threads: 1
    resources:
        mem_mb=memory(8000),
        runtime=60,
    params:
        config=lambda w: keys(**settings.evaluation(w.run)),
        code=code("evaluate"),
    shell:
        "python -m workflow_scripts.evaluate --config {params.config:q} --predictions {input.predictions:q}"
        " --source {input.source:q} --records {input.records:q} --numbers {output.numbers:q} > {log:q} 2>&1"
