# From source images and annotations to records, coordinate tokens, and the tiny and calibration splits.


rule download:
    """Provide one split of a dataset: download it, generate it, or use the user's own folder; write its manifest."""
    output:
        source=f"{RAW}/{{dataset}}/{{split}}.source.json",
    log:
        f"{RESULTS}/logs/download/{{dataset}}.{{split}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/download/{{dataset}}.{{split}}.tsv"
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=memory(2000),
        runtime=720,
        download=1,
    params:
        config=lambda w: keys(dataset=w.dataset, settings=settings.source(w.dataset, w.split)),
        raw=f"{RAW}/{{dataset}}/raw",
        own=lambda w: keys(annotations=settings.own_annotations(w.dataset, w.split)),
        code=code("download"),
    shell:
        "python -m workflow_scripts.download --config {params.config:q} --split {wildcards.split}"
        " --raw {params.raw:q} --source {output.source:q} > {log:q} 2>&1"


rule convert_shard:
    """Convert one shard of the images; convert_resize joins the shards."""
    input:
        source=source_of,
    output:
        done=temp(f"{RESULTS}/{{run}}/data/shards/{{split}}/{{shard}}-of-{{shards}}"),
    log:
        f"{RESULTS}/{{run}}/logs/convert_shard.{{split}}.{{shard}}-of-{{shards}}.log",
    benchmark:
        f"{RESULTS}/{{run}}/benchmarks/convert_shard.{{split}}.{{shard}}-of-{{shards}}.tsv"
    conda:
        "../envs/data.yaml"
    threads: lambda w: settings.run(w.run).data.num_workers or 16
    resources:
        mem_mb=memory(2500),
        runtime=240,
    params:
        config=lambda w: keys(**conversion_of(w)),
        records=f"{RESULTS}/{{run}}/data/{{split}}.jsonl",
        images=f"{RESULTS}/{{run}}/data/images/{{split}}",
        code=code("convert_shard"),
    shell:
        "COORDEXP_CONSOLE_FD=3 python -m workflow_scripts.convert_shard --config {params.config:q}"
        " --source {input.source:q} --records {params.records:q} --images {params.images:q} --workers {threads}"
        " --shard {wildcards.shard} --shards {wildcards.shards} --done {output.done:q} 3>&2 > {log:q} 2>&1"


rule convert_resize:
    """Resize images to the grid, within MAX_BLOCKS tiles, and write their annotations as pixel-space records."""
    input:
        source=source_of,
        shards=conversion_shards,
    output:
        records=f"{RESULTS}/{{run}}/data/{{split}}.jsonl",
        stats=f"{RESULTS}/{{run}}/data/{{split}}.stats.json",
        provenance=f"{RESULTS}/{{run}}/data/{{split}}.images.json",
    log:
        f"{RESULTS}/{{run}}/logs/convert_resize.{{split}}.log",
    benchmark:
        f"{RESULTS}/{{run}}/benchmarks/convert_resize.{{split}}.tsv"
    conda:
        "../envs/data.yaml"
    threads: lambda w: settings.run(w.run).data.num_workers or 16
    resources:
        mem_mb=memory(2500),
        runtime=240,
    params:
        config=lambda w: keys(**conversion_of(w)),
        images=f"{RESULTS}/{{run}}/data/images/{{split}}",
        code=code("convert_resize"),
    shell:
        "COORDEXP_CONSOLE_FD=3 python -m workflow_scripts.convert_resize --config {params.config:q} --source {input.source:q}"
        " --records {output.records:q} --stats {output.stats:q} --provenance {output.provenance:q}"
        " --images {params.images:q} --workers {threads} 3>&2 > {log:q} 2>&1"


rule coord_tokenize:
    """Quantise the unrounded geometry of the records to coordinate tokens."""
    input:
        records=f"{RESULTS}/{{run}}/data/{{split}}.jsonl",
    output:
        tokens=f"{RESULTS}/{{run}}/data/{{split}}.coord.jsonl",
    log:
        f"{RESULTS}/{{run}}/logs/coord_tokenize.{{split}}.log",
    benchmark:
        f"{RESULTS}/{{run}}/benchmarks/coord_tokenize.{{split}}.tsv"
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=memory(1000),
        runtime=30,
    params:
        config=lambda w: keys(emit_norm=settings.recipe(own_records(w).name).custom.emit_norm),
        code=code("coord_tokenize"),
    shell:
        "python -m workflow_scripts.coord_tokenize --config {params.config:q} --records {input.records:q}"
        " --tokens {output.tokens:q} > {log:q} 2>&1"


rule tiny_split:
    """Select a random subset of TINY images, the same in pixel and in token space."""
    input:
        records=f"{RESULTS}/{{run}}/data/{{split}}.jsonl",
        tokens=f"{RESULTS}/{{run}}/data/{{split}}.coord.jsonl",
    output:
        records=f"{RESULTS}/{{run}}/data/{{split}}_tiny.jsonl",
        tokens=f"{RESULTS}/{{run}}/data/{{split}}_tiny.coord.jsonl",
    log:
        f"{RESULTS}/{{run}}/logs/tiny_split.{{split}}.log",
    benchmark:
        f"{RESULTS}/{{run}}/benchmarks/tiny_split.{{split}}.tsv"
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=memory(1000),
        runtime=30,
    params:
        config=lambda w: keys(tiny=own_records(w).data.tiny, seed=own_records(w).data.seed),
        code=code("tiny_split"),
    shell:
        "python -m workflow_scripts.tiny_split --config {params.config:q} --records {input.records:q}"
        " --tokens {input.tokens:q} --tiny-records {output.records:q} --tiny-tokens {output.tokens:q} > {log:q} 2>&1"


rule calibration_split:
    """Split the training records into calibration images, which training never sees, and the rest."""
    input:
        records=lambda w: settings.records(w.run, settings.split(w.run, "train")),
        tokens=lambda w: settings.records(w.run, f"{settings.split(w.run, 'train')}.coord"),
    output:
        calibration=f"{RESULTS}/{{run}}/data/calibration.jsonl",
        rest=f"{RESULTS}/{{run}}/data/train_rest.jsonl",
        rest_tokens=f"{RESULTS}/{{run}}/data/train_rest.coord.jsonl",
    log:
        f"{RESULTS}/{{run}}/logs/calibration_split.log",
    benchmark:
        f"{RESULTS}/{{run}}/benchmarks/calibration_split.tsv"
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=memory(1000),
        runtime=30,
    params:
        config=lambda w: keys(images=settings.run(w.run).calibrate.images, seed=settings.run(w.run).data.seed),
        code=code("calibration_split"),
    shell:
        "python -m workflow_scripts.calibration_split --config {params.config:q} --records {input.records:q}"
        " --tokens {input.tokens:q} --calibration {output.calibration:q} --rest {output.rest:q}"
        " --rest-tokens {output.rest_tokens:q} > {log:q} 2>&1"


rule data:
    """Target: all record files of a run, for the splits in data.splits."""
    input:
        lambda w: [
            settings.records(w.run, f"{settings.split(w.run, split)}{tiny}{space}")
            for split in settings.data.splits
            for tiny in ("", "_tiny")
            for space in ("", ".coord")
        ],
    output:
        touch(f"{RESULTS}/{{run}}/data/complete"),
