rule prepare:
    output:
        manifest=plan.pairs("{dataset}", "{split}"),
    params:
        out=subpath(output.manifest, parent=True),
    log:
        "logs/prepare/{dataset}.{split}.log",
    conda:
        "../envs/sis.yaml"
    shell:
        "sis prepare --dataset {wildcards.dataset} --split {wildcards.split}"
        " --data {plan.settings.data} --out {params.out} 2>&1 | tee {log}"
