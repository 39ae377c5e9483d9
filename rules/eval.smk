# Answers with scores, gathered from their shards, scores as probabilities where asked for, and the numbers.

SHARDS = settings.config["predict"]["shards"]
PICTURES = settings.config["predict"]["images"]
CALIBRATED = settings.config["calibrate"]["method"] != "none"
PREDICTED = {"eval": PICTURES, "calibration": "calibration"}


localrules:
    gather,


rule predict:
    """One shard of the images: answers decoded under the grammar, boxes with scores."""
    input:
        records=lambda w: settings.records(w.run, PREDICTED[w.part]),
        images=lambda w: settings.images(settings.records(w.run, PREDICTED[w.part])),
        source=lambda w: source_of(w, "val"),
        model=f"{RESULTS}/{{run}}/merged/merge_manifest.json",
    output:
        predictions=f"{RESULTS}/{{run}}/{{part}}/shards/{{shard}}-of-{{shards}}.jsonl",
    log:
        f"{RESULTS}/{{run}}/logs/predict.{{part}}.{{shard}}-of-{{shards}}.log",
    benchmark:
        f"{RESULTS}/{{run}}/benchmarks/predict.{{part}}.{{shard}}-of-{{shards}}.tsv"
    conda:
        "../envs/train.yaml"
    threads: settings.config["train"]["threads"]
    resources:
        mem_mb=memory(small=4000, large=32000),
        runtime=lambda w: settings.size(w.run, small=30, large=720),
        gpu=lambda w: settings.size(w.run, small=0, large=1),
    params:
        config=lambda w: keys(**settings.answering(settings.recipe(w.run)), desc=settings.data["desc"]),
        code=code("predict"),
    shell:
        "python -m workflow_scripts.predict --config {params.config:q} --records {input.records:q}"
        " --source {input.source:q} --model {input.model:q} --predictions {output.predictions:q}"
        " --shard {wildcards.shard} --shards {wildcards.shards} --threads {threads} --gpus {resources.gpu}"
        " > {log:q} 2>&1"


rule gather:
    """All shards as one file in the order of the records; those that are evaluated with calibrated scores, if asked."""
    input:
        shards=expand(
            f"{RESULTS}/{{{{run}}}}/{{{{part}}}}/shards/{{shard}}-of-{{shards}}.jsonl",
            shard=range(1, SHARDS + 1),
            shards=SHARDS,
        ),
        records=lambda w: settings.records(w.run, PREDICTED[w.part]),
        calibration=lambda w: [f"{RESULTS}/{w.run}/calibration.json"] if CALIBRATED and w.part == "eval" else [],
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
    """From raw scores to the probability of being right, learnt on images that neither training nor evaluation uses."""
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
        config=keys(method=settings.config["calibrate"]["method"]),
        code=code("calibrate"),
    shell:
        "python -m workflow_scripts.calibrate --config {params.config:q} --predictions {input.predictions:q}"
        " --records {input.records:q} --source {input.source:q} --trained-on {input.trained_on:q}"
        " --calibration {output.calibration:q} > {log:q} 2>&1"


rule evaluate:
    """LVIS and COCO numbers against the benchmark's own annotation file, with an account of everything dropped."""
    input:
        predictions=f"{RESULTS}/{{run}}/eval/predictions.jsonl",
        source=lambda w: source_of(w, "val"),
        records=lambda w: settings.records(w.run, PICTURES),
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
        config=lambda w: keys(**settings.config["evaluate"], **settings.knobs("on_bad")),
        code=code("evaluate"),
    shell:
        "python -m workflow_scripts.evaluate --config {params.config:q} --predictions {input.predictions:q}"
        " --source {input.source:q} --records {input.records:q} --numbers {output.numbers:q} > {log:q} 2>&1"
