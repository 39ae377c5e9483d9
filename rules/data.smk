# Source images and annotations -> records on the model's grid -> coordinate tokens -> tiny and calibration splits.


rule download:
    """Provides one split of a data set: downloaded, generated, or a folder of the user's own. Ends in a manifest."""
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


rule convert_resize:
    """Source images and annotations as pixel-space records and images on the grid, at most MAX_BLOCKS tiles."""
    input:
        source=source_of,
    output:
        records=f"{RESULTS}/{{run}}/data/{{split}}.jsonl",
        stats=f"{RESULTS}/{{run}}/data/{{split}}.stats.json",
        provenance=f"{RESULTS}/{{run}}/data/{{split}}.images.json",
    log:
        f"{RESULTS}/{{run}}/logs/convert_resize.{{split}}.log",
    benchmark:
        f"{RESULTS}/{{run}}/benchmarks/convert_resize.{{split}}.tsv"
    wildcard_constraints:
        run=PREPARED,
    conda:
        "../envs/data.yaml"
    threads: settings.data["num_workers"] or 16
    resources:
        mem_mb=memory(2500),
        runtime=240,
    params:
        config=lambda w: keys(
            options=settings.conversion(
                w.split,
                "factor",
                "min_blocks",
                "poly_max_points",
                "poly_min_iou",
                "resize",
                "jpeg_quality",
                "geometry",
                "round_geometry",
                "ordering",
                "desc",
                "crowd",
                "keep_empty",
                "on_bad",
                "seed",
            ),
            max_blocks=settings.run(w.run).max_blocks,
        ),
        images=f"{RESULTS}/{{run}}/data/images/{{split}}",
        code=code("convert_resize"),
    shell:
        "python -m workflow_scripts.convert_resize --config {params.config:q} --source {input.source:q}"
        " --records {output.records:q} --stats {output.stats:q} --provenance {output.provenance:q}"
        " --images {params.images:q} --workers {threads} > {log:q} 2>&1"


rule coord_tokenize:
    """Pixel-space records as coordinate tokens, from the unrounded geometry."""
    input:
        records=f"{RESULTS}/{{run}}/data/{{split}}.jsonl",
    output:
        tokens=f"{RESULTS}/{{run}}/data/{{split}}.coord.jsonl",
    log:
        f"{RESULTS}/{{run}}/logs/coord_tokenize.{{split}}.log",
    benchmark:
        f"{RESULTS}/{{run}}/benchmarks/coord_tokenize.{{split}}.tsv"
    wildcard_constraints:
        run=PREPARED,
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=memory(1000),
        runtime=30,
    params:
        config=lambda w: keys(emit_norm=settings.recipe(w.run).custom.emit_norm),
        code=code("coord_tokenize"),
    shell:
        "python -m workflow_scripts.coord_tokenize --config {params.config:q} --records {input.records:q}"
        " --tokens {output.tokens:q} > {log:q} 2>&1"


rule tiny_split:
    """A random subset of TINY images, the same ones in pixel and in token space."""
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
    wildcard_constraints:
        run=PREPARED,
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=memory(1000),
        runtime=30,
    params:
        config=keys(**settings.knobs("tiny", "seed")),
        code=code("tiny_split"),
    shell:
        "python -m workflow_scripts.tiny_split --config {params.config:q} --records {input.records:q}"
        " --tokens {input.tokens:q} --tiny-records {output.records:q} --tiny-tokens {output.tokens:q} > {log:q} 2>&1"


rule calibration_split:
    """Images of the training split that training never sees, and the others in pixel and in token space."""
    input:
        records=f"{RESULTS}/{{run}}/data/train.jsonl",
        tokens=f"{RESULTS}/{{run}}/data/train.coord.jsonl",
    output:
        calibration=f"{RESULTS}/{{run}}/data/calibration.jsonl",
        rest=f"{RESULTS}/{{run}}/data/train_rest.jsonl",
        rest_tokens=f"{RESULTS}/{{run}}/data/train_rest.coord.jsonl",
    log:
        f"{RESULTS}/{{run}}/logs/calibration_split.log",
    benchmark:
        f"{RESULTS}/{{run}}/benchmarks/calibration_split.tsv"
    wildcard_constraints:
        run=PREPARED,
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=memory(1000),
        runtime=30,
    params:
        config=keys(calibration=settings.config["calibrate"]["calibration"], seed=settings.data["seed"]),
        code=code("calibration_split"),
    shell:
        "python -m workflow_scripts.calibration_split --config {params.config:q} --records {input.records:q}"
        " --tokens {input.tokens:q} --calibration {output.calibration:q} --rest {output.rest:q}"
        " --rest-tokens {output.rest_tokens:q} > {log:q} 2>&1"


rule data:
    """Target for the data alone: every file of the splits in data.splits, of one run."""
    input:
        lambda w: [
            settings.records(w.run, f"{split}{tiny}{space}")
            for split in settings.data["splits"]
            for tiny in ("", "_tiny")
            for space in ("", ".coord")
        ],
    output:
        touch(f"{RESULTS}/{{run}}/data/complete"),
