rule prior:
    input:
        pairs=plan.pairs("{dataset}", "train"),
    output:
        prior=plan.prior("{dataset}", "{prior}"),
    log:
        "logs/prior/{dataset}.{prior}.log",
    conda:
        "../envs/sis.yaml"
    threads: plan.experiment.threads
    resources:
        # Where a job runs is no parameter: another device must not invalidate finished work.
        device=plan.settings.device,
    params:
        experiment=plan.experiment.name,
        run=lambda wildcards: plan.of_model(wildcards.dataset, wildcards.prior).name,
    shell:
        "sis prior --experiment {params.experiment} --dataset {wildcards.dataset} --run {params.run}"
        " --pairs {input.pairs} --device {resources.device} --out {output.prior} 2>&1 | tee {log}"
