# Supervised fine-tuning in ms-swift, and one plain checkpoint out of it.


rule train:
    """Fine-tuning in ms-swift. Checkpoints lie outside the output: a killed job continues at the last whole one."""
    input:
        train=lambda w: settings.trained_on(w.run, "train"),
        val=lambda w: settings.trained_on(w.run, "val"),
        images=lambda w: settings.images(
            settings.trained_on(w.run, "train"), settings.trained_on(w.run, "val"), *settings.mixture(w.run)
        ),
        source=lambda w: source_of(w, "train"),
        mixture=lambda w: settings.mixture(w.run),
        categories=lambda w: settings.recipe(w.run).custom.categories or [],
        base=lambda w: f"{model_of(w)}/config.json",
        tokens=lambda w: f"{model_of(w)}/coord_tokens.json",
    output:
        manifest=f"{RESULTS}/{{run}}/train/adapter/train_manifest.json",
        log=f"{RESULTS}/{{run}}/train/log.jsonl",
    log:
        f"{RESULTS}/{{run}}/logs/train.log",
    benchmark:
        f"{RESULTS}/{{run}}/benchmarks/train.tsv"
    conda:
        "../envs/train.yaml"
    threads: settings.config["train"]["threads"]
    resources:
        mem_mb=memory(small=4000, large=64000),
        runtime=lambda w: settings.size(w.run, small=60, large=2880),
        # What the profile grants of these is what trains: a process a GPU, over so many machines.
        gpu=lambda w: settings.size(w.run, small=0, large=settings.run(w.run).world_size),
        nodes=lambda w: settings.run(w.run).nodes,
    params:
        config=lambda w: keys(
            recipe=settings.recipe_map(w.run),
            processes=settings.run(w.run).processes,
            nodes=settings.run(w.run).nodes,
            desc=settings.data["desc"],
        ),
        code=code("train"),
    shell:
        "python -m workflow_scripts.train --config {params.config:q} --base {input.base:q} --train {input.train:q}"
        " --val {input.val:q} --source {input.source:q} --log {output.log:q}"
        " --trained {output.manifest:q} --threads {threads} --gpus {resources.gpu} --nodes {resources.nodes}"
        " > {log:q} 2>&1"


rule merge:
    """The trained result as a plain Hugging Face checkpoint that needs no plug-in."""
    input:
        manifest=f"{RESULTS}/{{run}}/train/adapter/train_manifest.json",
        base=lambda w: f"{model_of(w)}/config.json",
        tokens=lambda w: f"{model_of(w)}/coord_tokens.json",
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
