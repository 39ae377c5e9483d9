# Pages and figures.


localrules:
    curves,


rule curves:
    """Plot the loss and its terms over the training steps."""
    input:
        log=f"{RESULTS}/{{run}}/train/log.jsonl",
    output:
        curves=report(
            f"{RESULTS}/{{run}}/train/loss.png",
            category="Training",
            labels={"run": "{run}", "figure": "loss curves"},
        ),
    log:
        f"{RESULTS}/{{run}}/logs/curves.log",
    benchmark:
        f"{RESULTS}/{{run}}/benchmarks/curves.tsv"
    conda:
        "../envs/eval.yaml"
    threads: 1
    resources:
        mem_mb=memory(1000),
        runtime=10,
    params:
        code=code("curves"),
    shell:
        "python -m workflow_scripts.curves --train-log {input.log:q} --curves {output.curves:q} > {log:q} 2>&1"


rule report:
    """Write the report of a run: one self-contained page with metrics, curves, images and provenance."""
    input:
        numbers=f"{RESULTS}/{{run}}/eval.json",
        predictions=f"{RESULTS}/{{run}}/eval/predictions.jsonl",
        records=evaluated,
        images=lambda w: settings.images(evaluated(w)),
        log=lambda w: f"{settings.training(w.run)}/log.jsonl",
        curves=lambda w: f"{settings.training(w.run)}/loss.png",
        trained=lambda w: f"{settings.training(w.run)}/adapter/train_manifest.json",
        calibration=calibration_of,
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
        config=lambda w: keys(gallery=settings.run(w.run).report.gallery, run=w.run),
        code=code("report"),
    shell:
        "python -m workflow_scripts.report --config {params.config:q} --numbers {input.numbers:q}"
        " --predictions {input.predictions:q} --records {input.records:q} --train-log {input.log:q}"
        " --trained {input.trained:q} --calibration {input.calibration:q} --page {output.page:q} > {log:q} 2>&1"


rule compare:
    """Compare runs on the same images, `run+run...`, with paired confidence intervals of the differences."""
    input:
        evaluated=lambda w: expand(f"{RESULTS}/{{run}}/eval.json", run=w.runs.split("+")),
        predictions=lambda w: expand(f"{RESULTS}/{{run}}/eval/predictions.jsonl", run=w.runs.split("+")),
        source=lambda w: evaluated_source(w, w.runs.split("+")[0]),
        logs=lambda w: [f"{settings.training(run)}/log.jsonl" for run in w.runs.split("+")],
    output:
        numbers=f"{RESULTS}/compare/{{runs}}/compare.json",
        page=report(
            f"{RESULTS}/compare/{{runs}}/report.html",
            category="Comparison",
            labels={"runs": "{runs}", "figure": "comparison"},
        ),
    log:
        f"{RESULTS}/compare/{{runs}}/logs/compare.log",
    benchmark:
        f"{RESULTS}/compare/{{runs}}/benchmarks/compare.tsv"
    conda:
        "../envs/eval.yaml"
    threads: 1
    resources:
        mem_mb=memory(8000),
        runtime=60,
    params:
        code=code("compare"),
    shell:
        "python -m workflow_scripts.compare --evaluated {input.evaluated:q} --source {input.source:q} --logs {input.logs:q}"
        " --numbers {output.numbers:q} --page {output.page:q} > {log:q} 2>&1"


rule leaderboard:
    """Show runs, `run+run...`, beside published figures of the same protocols."""
    input:
        evaluated=lambda w: expand(f"{RESULTS}/{{run}}/eval.json", run=w.runs.split("+")),
    output:
        page=report(
            f"{RESULTS}/compare/{{runs}}/leaderboard.html",
            category="Comparison",
            labels={"runs": "{runs}", "figure": "leaderboard"},
        ),
    log:
        f"{RESULTS}/compare/{{runs}}/logs/leaderboard.log",
    benchmark:
        f"{RESULTS}/compare/{{runs}}/benchmarks/leaderboard.tsv"
    wildcard_constraints:
        runs=rf"{runs.PATTERN}(\+{runs.PATTERN})*",
    conda:
        "../envs/eval.yaml"
    threads: 1
    resources:
        mem_mb=memory(1000),
        runtime=10,
    params:
        code=code("leaderboard"),
    shell:
        "python -m workflow_scripts.leaderboard --evaluated {input.evaluated:q} --page {output.page:q} > {log:q} 2>&1"
