rule prior:
    input:
        pairs=plan.pairs("{dataset}", "train"),
    output:
        prior=plan.prior("{dataset}", "{prior}"),
    params:
        run=lambda wildcards: plan.of_model(wildcards.dataset, wildcards.prior).name,
    log:
        "logs/prior/{dataset}.{prior}.log",
    threads: plan.experiment.threads
    conda:
        "../envs/sis.yaml"
    shell:
        "sis prior --experiment {plan.experiment.name} --dataset {wildcards.dataset} --run {params.run}"
        " --pairs {input.pairs} --device {plan.settings.device} --out {output.prior} 2>&1 | tee {log}"
