rule prepare:
    output:
        manifest=plan.pairs("{dataset}", "{split}"),
    log:
        "logs/prepare/{dataset}.{split}.log",
    conda:
        "../envs/sis.yaml"
    params:
        out=subpath(output.manifest, parent=True),
        data=plan.settings.data,
    shell:
        "sis prepare --dataset {wildcards.dataset} --split {wildcards.split}"
        " --data {params.data} --out {params.out} 2>&1 | tee {log}"
