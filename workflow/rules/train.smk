rule train:
    input:
        pairs=plan.pairs("{dataset}", "train"),
        # Nothing is trained on a dataset whose splits overlap.
        card=plan.dataset_card("{dataset}"),
    output:
        model=plan.model("{dataset}", "{model}"),
    log:
        "logs/train/{dataset}.{model}.log",
    conda:
        "../envs/sis.yaml"
    threads: plan.experiment.threads
    resources:
        # Where a job runs is no parameter: another device must not invalidate finished work.
        device=plan.settings.device,
    params:
        experiment=plan.experiment.name,
        run=lambda wildcards: plan.of_model(wildcards.dataset, wildcards.model).name,
    shell:
        "sis train --experiment {params.experiment} --dataset {wildcards.dataset} --run {params.run}"
        " --pairs {input.pairs} --device {resources.device} --out {output.model} 2>&1 | tee {log}"
