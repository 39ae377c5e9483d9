# Arms of the method beside each other: same data, steps and seeds; every arm is a recipe of config/ablation.

ABLATION = settings.config["ablation"]
ablation = Ablation(ABLATION, ROOT)
CELLS = ablation.cells()
TRAINED = sorted({cell.trained for cell in CELLS})
BASE_RUN = ABLATION["base"]["run"]
ARMS = f"{RESULTS}/ablation/{{run}}"
ARM = f"{ARMS}/{{start}}/{{arm}}-{{seed}}"
BASE = f"{RESULTS}/ablation/base-{{seed}}"
START_OF = {
    "base": f"{BASE}/train/adapter/train_manifest.json",
    "scratch": f"{RESULTS}/ablation/models/random-{{seed}}/config.json",
}
STARTS = f"{RESULTS}/ablation/models/{{start}}-{{seed}}"


wildcard_constraints:
    start="|".join(ABLATION["starts"]),
    arm="|".join(ABLATION["arms"]),
    seed=r"[0-9]+",
    decode=r"argmax|expectation|local",


localrules:
    ablation_random,


use rule fetch_model as ablation_random with:
    output:
        config=f"{RESULTS}/ablation/models/random-{{seed}}/config.json",
        manifest=f"{RESULTS}/ablation/models/random-{{seed}}/model_source.json",
    log:
        f"{RESULTS}/logs/ablation/random-{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/ablation/random-{{seed}}.tsv"
    params:
        config=lambda w: keys(
            name=f"random-{w.seed}",
            settings={**settings.config["models"][ABLATION["base"]["model"]], "seed": int(w.seed)},
        ),
        own=lambda w: keys(base=settings.own_base(ABLATION["base"]["model"])),
        code=code("fetch_model"),


use rule train as ablation_base with:
    input:
        train=lambda w: settings.trained_on(BASE_RUN, "train", ablation.recipe(BASE_ARM)),
        val=lambda w: settings.trained_on(BASE_RUN, "val", ablation.recipe(BASE_ARM)),
        images=lambda w: settings.images(settings.records(BASE_RUN, "train"), settings.records(BASE_RUN, "val")),
        source=f"{RAW}/{settings.run(BASE_RUN).dataset}/train.source.json",
        base=f"{RESULTS}/ablation/models/random-{{seed}}/config.json",
    output:
        manifest=f"{BASE}/train/adapter/train_manifest.json",
        log=f"{BASE}/train/log.jsonl",
    log:
        f"{BASE}/logs/train.log",
    benchmark:
        f"{BASE}/benchmarks/train.tsv"
    threads: 1
    resources:
        mem_mb=memory(4000),
        runtime=120,
        gpu=0,
        nodes=1,
    params:
        config=lambda w: keys(
            recipe=ablation.recipe_map(BASE_ARM, None, w.seed), processes=1, desc=settings.data["desc"]
        ),
        code=code("train"),


use rule expand_vocab as ablation_expand with:
    input:
        config=lambda w: START_OF[w.start].format(seed=w.seed),
    output:
        config=f"{STARTS}-coordexp/config.json",
        tokens=f"{STARTS}-coordexp/coord_tokens.json",
    log:
        f"{RESULTS}/logs/ablation/{{start}}-{{seed}}-expand.log",
    benchmark:
        f"{RESULTS}/benchmarks/ablation/{{start}}-{{seed}}-expand.tsv"
    threads: 1


use rule train as ablation_train with:
    input:
        train=lambda w: settings.trained_on(w.run, "train", ablation.recipe(w.arm, w.start)),
        val=lambda w: settings.trained_on(w.run, "val", ablation.recipe(w.arm, w.start)),
        images=lambda w: settings.images(settings.records(w.run, "train"), settings.records(w.run, "val")),
        source=lambda w: source_of(w, "train"),
        base=f"{STARTS}-coordexp/config.json",
        tokens=f"{STARTS}-coordexp/coord_tokens.json",
    output:
        manifest=f"{ARM}/train/adapter/train_manifest.json",
        log=f"{ARM}/train/log.jsonl",
    log:
        f"{ARM}/logs/train.log",
    benchmark:
        f"{ARM}/benchmarks/train.tsv"
    threads: 1
    resources:
        mem_mb=memory(4000),
        runtime=120,
        gpu=0,
        nodes=1,
    params:
        config=lambda w: keys(
            recipe=ablation.recipe_map(w.arm, w.start, w.seed), processes=1, desc=settings.data["desc"]
        ),
        code=code("train"),


use rule merge as ablation_merge with:
    input:
        manifest=f"{ARM}/train/adapter/train_manifest.json",
        base=f"{STARTS}-coordexp/config.json",
        tokens=f"{STARTS}-coordexp/coord_tokens.json",
    output:
        manifest=f"{ARM}/merged/merge_manifest.json",
        config=f"{ARM}/merged/config.json",
    log:
        f"{ARM}/logs/merge.log",
    benchmark:
        f"{ARM}/benchmarks/merge.tsv"
    threads: 1


use rule predict as ablation_predict with:
    input:
        records=lambda w: settings.records(w.run, "val"),
        images=lambda w: settings.images(settings.records(w.run, "val")),
        source=lambda w: source_of(w, "val"),
        model=f"{ARM}/merged/merge_manifest.json",
    output:
        predictions=f"{ARM}/eval/{{decode}}/{{shard}}-of-{{shards}}.jsonl",
    log:
        f"{ARM}/logs/predict.{{decode}}.{{shard}}-of-{{shards}}.log",
    benchmark:
        f"{ARM}/benchmarks/predict.{{decode}}.{{shard}}-of-{{shards}}.tsv"
    threads: 1
    resources:
        mem_mb=memory(4000),
        runtime=60,
        gpu=0,
    params:
        config=lambda w: keys(
            **settings.answering(ablation.recipe(w.arm, w.start), decode=w.decode),
            desc=settings.data["desc"],
        ),
        code=code("predict"),


use rule evaluate as ablation_evaluate with:
    input:
        predictions=f"{ARM}/eval/{{decode}}/1-of-1.jsonl",
        source=lambda w: source_of(w, "val"),
        records=lambda w: settings.records(w.run, "val"),
    output:
        numbers=f"{ARM}/eval/{{decode}}.json",
    log:
        f"{ARM}/logs/evaluate.{{decode}}.log",
    benchmark:
        f"{ARM}/benchmarks/evaluate.{{decode}}.tsv"
    params:
        config=lambda w: keys(**settings.config["evaluate"], **settings.knobs("on_bad")),
        code=code("evaluate"),


rule ablation_summary:
    """Mean, spread and paired differences of the arms, as numbers and as a page."""
    input:
        numbers=lambda w: expand(f"{ARMS}/{{cell}}.json", run=w.run, cell=[cell.name for cell in CELLS]),
        predictions=lambda w: expand(f"{ARMS}/{{cell}}/1-of-1.jsonl", run=w.run, cell=[cell.name for cell in CELLS]),
        times=lambda w: expand(f"{ARMS}/{{trained}}/benchmarks/train.tsv", run=w.run, trained=TRAINED),
        bases=expand(f"{BASE}/benchmarks/train.tsv", seed=ABLATION["seeds"] if "base" in ABLATION["starts"] else []),
    output:
        summary=f"{ARMS}/summary.json",
        page=report(
            f"{ARMS}/summary.html", category="Ablation", labels={"run": "{run}", "figure": "arms of the method"}
        ),
    log:
        f"{ARMS}/logs/summary.log",
    benchmark:
        f"{ARMS}/benchmarks/summary.tsv"
    conda:
        "../envs/eval.yaml"
    threads: 1
    resources:
        mem_mb=memory(2000),
        runtime=30,
    params:
        config=keys(**ABLATION),
        code=code("ablation_summary"),
    shell:
        "python -m workflow_scripts.ablation_summary --config {params.config:q} --summary {output.summary:q}"
        " --page {output.page:q} > {log:q} 2>&1"
