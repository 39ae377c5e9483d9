# What one would rather look at than read.


rule report:
    """One self-contained page: numbers, curves, pictures, provenance."""
    input:
        numbers=f"{RESULTS}/{{run}}/eval.json",
        predictions=f"{RESULTS}/{{run}}/eval/predictions.jsonl",
        records=f"{RESULTS}/{{run}}/data/{PICTURES}.jsonl",
        log=f"{RESULTS}/{{run}}/train/log.jsonl",
        trained=f"{RESULTS}/{{run}}/train/adapter/train_manifest.json",
    output:
        page=report(
            f"{RESULTS}/{{run}}/report.html",
            category="Evaluation",
            labels={"run": "{run}", "figure": "report"},
        ),
    log:
        f"{RESULTS}/{{run}}/logs/report.log",
    benchmark:
        f"{RESULTS}/{{run}}/benchmarks/report.tsv"
    conda:
        "../envs/eval.yaml"
    threads: 1
    resources:
        mem_mb=memory(4000),
        runtime=30,
    params:
        config=lambda w: keys(gallery=settings.config["report"]["gallery"], run=w.run),
        code=code("report"),
    shell:
        "python -m workflow_scripts.report --config {params.config:q} --numbers {input.numbers:q}"
        " --predictions {input.predictions:q} --records {input.records:q} --train-log {input.log:q}"
        " --trained {input.trained:q} --page {output.page:q} > {log:q} 2>&1"
