rule train:
    input:
        pairs=plan.pairs("{dataset}", "train"),
    output:
        model=plan.model("{dataset}", "{model}"),
    params:
        run=lambda wildcards: plan.of_model(wildcards.dataset, wildcards.model).name,
    log:
        "logs/train/{dataset}.{model}.log",
    threads: plan.experiment.threads
    conda:
        "../envs/sis.yaml"
    shell:
        "sis train --experiment {plan.experiment.name} --dataset {wildcards.dataset} --run {params.run}"
        " --pairs {input.pairs} --device {plan.settings.device} --out {output.model} 2>&1 | tee {log}"
