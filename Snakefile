# CoordExp: from a detection dataset to a vision-language model that detects, and its honest numbers.
#
#   snakemake results/shapes_9/eval.json --cores all      generated shapes and a tiny model, on a laptop
#   snakemake results/lvis_768/eval.json --cores all      LVIS at a budget of 768 tiles a image

from snakemake.utils import min_version

min_version("9.10")


configfile: "config/config.yaml"


include: "rules/common.smk"
include: "rules/data.smk"
include: "rules/model.smk"
include: "rules/train.smk"
include: "rules/eval.smk"
include: "rules/report.smk"
include: "rules/sweeps.smk"


rule all:
    default_target: True
    input:
        f"{RESULTS}/shapes_9/eval.json",
        f"{RESULTS}/shapes_9/report.html",
