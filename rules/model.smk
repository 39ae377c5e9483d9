# The base checkpoint and its coordinate tokens, shared by every run of that base.


rule fetch_model:
    """Provide a base checkpoint: from a hub at a pinned revision, the user's own folder, or a small random model."""
    output:
        config=f"{RAW}/models/{{model}}/config.json",
        manifest=f"{RAW}/models/{{model}}/model_source.json",
    log:
        f"{RESULTS}/logs/fetch_model/{{model}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/fetch_model/{{model}}.tsv"
    wildcard_constraints:
        model=without(KEPT_BASES, MODEL),
    conda:
        "../envs/train.yaml"
    threads: 1
    resources:
        mem_mb=memory(4000),
        runtime=240,
        download=1,
    params:
        config=lambda w: keys(name=w.model, settings=settings.runs.model(w.model)),
        own=lambda w: keys(base=settings.own_base(w.model)),
        code=code("fetch_model"),
    shell:
        "python -m workflow_scripts.fetch_model --config {params.config:q} --fetched {output.config:q} > {log:q} 2>&1"


rule expand_vocab:
    """Add `<|coord_*|>` and `<|coord_0|>`..`<|coord_999|>` to a base, once, so that their ids never change."""
    input:
        unpack(fetched_of),
    output:
        config=f"{RESULTS}/models/{{model}}-coordexp{{init}}/config.json",
        tokens=f"{RESULTS}/models/{{model}}-coordexp{{init}}/coord_tokens.json",
    log:
        f"{RESULTS}/logs/expand_vocab/{{model}}{{init}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/expand_vocab/{{model}}{{init}}.tsv"
    wildcard_constraints:
        model=without(KEPT_BASES, MODEL),
    conda:
        "../envs/train.yaml"
    threads: 4
    resources:
        mem_mb=memory(4000),
        runtime=60,
    params:
        config=lambda w: keys(init=w.init.removeprefix("-") or settings.vocab.init),
        code=code("expand_vocab"),
    shell:
        "python -m workflow_scripts.expand_vocab --config {params.config:q} --base {input.config:q}"
        " --expanded {output.config:q} > {log:q} 2>&1"
