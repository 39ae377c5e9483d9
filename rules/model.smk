# The base checkpoint, and its vocabulary with coordinate tokens: made once, shared by every run of that base.


rule fetch_model:
    """The base checkpoint at a pinned revision, a folder of the user's own, or a small random one."""
    output:
        config=f"{RAW}/models/{{model}}/config.json",
        manifest=f"{RAW}/models/{{model}}/model_source.json",
    log:
        f"{RESULTS}/logs/fetch_model/{{model}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/fetch_model/{{model}}.tsv"
    conda:
        "../envs/train.yaml"
    threads: 1
    resources:
        mem_mb=memory(4000),
        runtime=240,
        download=1,
    params:
        config=lambda w: keys(name=w.model, settings=settings.config["models"][w.model]),
        own=lambda w: keys(base=settings.own_base(w.model)),
        code=code("fetch_model"),
    shell:
        "python -m workflow_scripts.fetch_model --config {params.config:q} --fetched {output.config:q} > {log:q} 2>&1"


rule expand_vocab:
    """The base with `<|coord_*|>` and `<|coord_0|>`..`<|coord_999|>`: the canonical start, so that ids never drift."""
    input:
        config=f"{RAW}/models/{{model}}/config.json",
        manifest=f"{RAW}/models/{{model}}/model_source.json",
    output:
        config=f"{EXPANDED}/config.json",
        tokens=f"{EXPANDED}/coord_tokens.json",
    log:
        f"{RESULTS}/logs/expand_vocab/{{model}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/expand_vocab/{{model}}.tsv"
    conda:
        "../envs/train.yaml"
    threads: 4
    resources:
        mem_mb=memory(4000),
        runtime=60,
    params:
        config=keys(**settings.config["vocab"]),
        code=code("expand_vocab"),
    shell:
        "python -m workflow_scripts.expand_vocab --config {params.config:q} --base {input.config:q}"
        " --expanded {output.config:q} > {log:q} 2>&1"
