# Supervised fine-tuning in ms-swift, and the merged checkpoint.


rule train:
    """Fine-tune in ms-swift; checkpoints are kept outside the output, so that a killed job resumes at the last one."""
    input:
        unpack(base_of),
        train=lambda w: settings.trained_on(own_checkpoint(w).name, "train"),
        val=lambda w: settings.trained_on(w.run, "val"),
        images=lambda w: settings.images(
            settings.trained_on(w.run, "train"), settings.trained_on(w.run, "val"), *settings.mixture(w.run)
        ),
        source=lambda w: source_of(w, "train"),
        mixture=lambda w: settings.mixture(w.run),
        categories=lambda w: settings.recipe(w.run).custom.categories or [],
    output:
        manifest=f"{RESULTS}/{{run}}/train/adapter/train_manifest.json",
        log=f"{RESULTS}/{{run}}/train/log.jsonl",
    log:
        f"{RESULTS}/{{run}}/logs/train.log",
    benchmark:
        f"{RESULTS}/{{run}}/benchmarks/train.tsv"
    wildcard_constraints:
        run=without([f"{run}/train" for run in KEPT], runs.PATTERN),
    conda:
        "../envs/train.yaml"
    threads: lambda w: settings.run(w.run).train.threads
    resources:
        mem_mb=memory(small=4000, large=64000),
        runtime=lambda w: settings.size(w.run, small=60, large=2880),
        # The training starts one process per GPU that the profile grants, on as many machines as it grants.
        gpu=lambda w: settings.size(w.run, small=0, large=settings.run(w.run).world_size),
        nodes=lambda w: settings.run(w.run).train.nodes,
    params:
        config=lambda w: keys(
            recipe=settings.recipe_map(w.run),
            processes=settings.run(w.run).train.processes,
            nodes=settings.run(w.run).train.nodes,
            desc=settings.run(w.run).data.desc,
        ),
        made_from=lambda w: training_runs.made_from(settings, w.run),
        rerun_on_code_change=lambda w: settings.run(w.run).train.rerun_on_code_change,
        # A finished training run is kept when its code changes, unless `rerun_on_code_change` is set.
        code=lambda w: training_code(settings.recipe(w.run)) if settings.run(w.run).train.rerun_on_code_change else "",
    shell:
        "COORDEXP_CONSOLE_FD=3 python -m workflow_scripts.train --config {params.config:q} --base {input.base:q}"
        " --train {input.train:q} --val {input.val:q} --source {input.source:q} --log {output.log:q} --messages {log:q}"
        " --made-from {params.made_from} --rerun-on-code-change {params.rerun_on_code_change}"
        " --trained {output.manifest:q} --threads {threads} --gpus {resources.gpu} --nodes {resources.nodes}"
        " 3>&2 > {log:q} 2>&1"


rule merge:
    """Merge the trained weights into a plain Hugging Face checkpoint, which needs no plug-in."""
    input:
        unpack(base_of),
        manifest=f"{RESULTS}/{{run}}/train/adapter/train_manifest.json",
    output:
        manifest=f"{RESULTS}/{{run}}/merged/merge_manifest.json",
        config=f"{RESULTS}/{{run}}/merged/config.json",
    log:
        f"{RESULTS}/{{run}}/logs/merge.log",
    benchmark:
        f"{RESULTS}/{{run}}/benchmarks/merge.tsv"
    conda:
        "../envs/train.yaml"
    threads: 4
    resources:
        mem_mb=memory(4000),
        runtime=60,
    params:
        code=code("merge"),
    shell:
        "python -m workflow_scripts.merge --base {input.base:q} --trained {input.manifest:q}"
        " --merged {output.config:q} > {log:q} 2>&1"
