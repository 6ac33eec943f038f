rule prepare_split:
    output:
        manifest=plan.pairs("{dataset}", "{split}"),
    log:
        "logs/prepare/{dataset}.{split}.log",
    conda:
        "../envs/sis.yaml"
    threads: lambda wildcards: plan.needs("prepare", wildcards.dataset).cpus
    resources:
        **native_resources(
            site, lambda wildcards: plan.needs("prepare", wildcards.dataset)
        ),
        # Where the raw files lie is no parameter: moving them must not invalidate finished work.
        root=lambda wildcards: plan.data_root(wildcards.dataset),
    params:
        out=subpath(output.manifest, parent=True),
    shell:
        "sis prepare --dataset {wildcards.dataset} --split {wildcards.split}"
        " --root {resources.root:q} --workers {threads} --out {params.out} 2>&1 | tee {log}"


rule describe_dataset:
    input:
        pairs=lambda wildcards: plan.splits(wildcards.dataset),
    output:
        card=report(
            plan.dataset_card("{dataset}"),
            caption="../report/dataset.rst",
            category="Datasets",
            labels={"dataset": "{dataset}"},
        ),
        table=plan.dataset_table("{dataset}"),
        picture=plan.dataset_picture("{dataset}"),
    log:
        "logs/prepare/{dataset}.card.log",
    conda:
        "../envs/sis.yaml"
    resources:
        **native_resources(
            site, lambda wildcards: light(plan.needs("prepare", wildcards.dataset))
        ),
    params:
        out=subpath(output.card, parent=True),
    shell:
        "sis data card {input.pairs} --out {params.out} 2>&1 | tee {log}"


# `snakemake prepare`: the datasets that config/config.yaml names, verified, and nothing else.
rule prepare:
    input:
        plan.prepared(),


localrules:
    prepare,
