rule prepare:
    output:
        manifest=plan.pairs("{dataset}", "{split}"),
    params:
        out=subpath(output.manifest, parent=True),
        data=plan.settings.data,
    log:
        "logs/prepare/{dataset}.{split}.log",
    conda:
        "../envs/sis.yaml"
    shell:
        "sis prepare --dataset {wildcards.dataset} --split {wildcards.split}"
        " --data {params.data} --out {params.out} 2>&1 | tee {log}"
