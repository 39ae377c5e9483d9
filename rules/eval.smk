# Answers with scores, gathered from their shards, and the numbers.

SHARDS = settings.config["predict"]["shards"]
PICTURES = settings.config["predict"]["pictures"]


localrules:
    gather,


rule predict:
    """One shard of the pictures: answers decoded under the grammar, boxes with scores."""
    input:
        records=f"{RESULTS}/{{run}}/data/{PICTURES}.jsonl",
        source=lambda w: source_of(w, "val"),
        model=f"{RESULTS}/{{run}}/merged/merge_manifest.json",
    output:
        predictions=f"{RESULTS}/{{run}}/eval/shards/{{shard}}-of-{{shards}}.jsonl",
    log:
        f"{RESULTS}/{{run}}/logs/predict.{{shard}}-of-{{shards}}.log",
    benchmark:
        f"{RESULTS}/{{run}}/benchmarks/predict.{{shard}}-of-{{shards}}.tsv"
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
        " --shard {wildcards.shard} --shards {wildcards.shards} --threads {threads} > {log:q} 2>&1"


rule gather:
    """All shards as one file in the order of the records."""
    input:
        shards=expand(
            f"{RESULTS}/{{{{run}}}}/eval/shards/{{shard}}-of-{{shards}}.jsonl",
            shard=range(1, SHARDS + 1),
            shards=SHARDS,
        ),
    output:
        predictions=f"{RESULTS}/{{run}}/eval/predictions.jsonl",
    log:
        f"{RESULTS}/{{run}}/logs/gather.log",
    benchmark:
        f"{RESULTS}/{{run}}/benchmarks/gather.tsv"
    conda:
        "../envs/train.yaml"
    threads: 1
    resources:
        mem_mb=memory(1000),
        runtime=10,
    params:
        code=code("gather"),
    shell:
        "python -m workflow_scripts.gather --shards {input.shards:q}"
        " --predictions {output.predictions:q} > {log:q} 2>&1"


rule evaluate:
    """LVIS and COCO numbers against the benchmark's own annotation file, with an account of everything dropped."""
    input:
        predictions=f"{RESULTS}/{{run}}/eval/predictions.jsonl",
        source=lambda w: source_of(w, "val"),
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
        config=lambda w: keys(**settings.config["evaluate"], subset=PICTURES != "val"),
        code=code("evaluate"),
    shell:
        "python -m workflow_scripts.evaluate --config {params.config:q} --predictions {input.predictions:q}"
        " --source {input.source:q} --numbers {output.numbers:q} > {log:q} 2>&1"
