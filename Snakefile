# CoordExp: teach a vision-language model to detect, from an annotated dataset to LVIS and COCO metrics.
#
#   snakemake results/shapes_9/eval.json --cores all      generated shapes and a tiny model, on a laptop
#   snakemake results/lvis_768/eval.json --cores all      LVIS with images of at most 768 tiles of 32 x 32 pixels

from snakemake.utils import min_version

min_version("9.10")


configfile: "config/config.yaml"


include: "rules/errors.smk"
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
        default_targets(),
