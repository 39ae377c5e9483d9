# Sweeps: every trial is a run of its own, to which all other rules apply.


localrules:
    sweep_summary,


rule sweep_summary:
    """Compare the variants of a sweep: mean and spread over seeds, paired differences, and the best variant."""
    input:
        evaluated=lambda w: expand(f"{RESULTS}/{{run}}/eval.json", run=trials_of(w)),
        predictions=lambda w: expand(f"{RESULTS}/{{run}}/eval/predictions.jsonl", run=trials_of(w)),
        trained=lambda w: list(
            dict.fromkeys(f"{settings.training(run)}/adapter/train_manifest.json" for run in trials_of(w))
        ),
    output:
        summary=f"{RESULTS}/sweeps/{{sweep}}/summary.json",
        page=report(
            f"{RESULTS}/sweeps/{{sweep}}/summary.html",
            category="Sweeps",
            labels={"sweep": "{sweep}", "figure": "variants"},
        ),
    log:
        f"{RESULTS}/sweeps/{{sweep}}/logs/sweep_summary.log",
    benchmark:
        f"{RESULTS}/sweeps/{{sweep}}/benchmarks/sweep_summary.tsv"
    conda:
        "../envs/eval.yaml"
    threads: 1
    resources:
        mem_mb=memory(2000),
        runtime=30,
    params:
        # As text: the order of the axes is part of the names of the variants.
        config=lambda w: keys(name=w.sweep, sweep=json.dumps(settings.config["sweeps"][w.sweep])),
        code=code("sweep_summary"),
    shell:
        "python -m workflow_scripts.sweep_summary --config {params.config:q} --summary {output.summary:q}"
        " --page {output.page:q} > {log:q} 2>&1"
