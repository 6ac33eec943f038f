rule prior:
    input:
        unpack(
            lambda wildcards: plan.latents_input(
                plan.of_model(wildcards.dataset, wildcards.prior)
            )
        ),
        pairs=plan.pairs("{dataset}", "train"),
    output:
        prior=plan.prior("{dataset}", "{prior}"),
    log:
        "logs/prior/{dataset}.{prior}.log",
    conda:
        "../envs/sis.yaml"
    threads: plan.experiment.threads
    resources:
        # Who asks and where a job runs are no parameters: another experiment with the same model, or another device, must
        # not invalidate finished work.
        experiment=plan.experiment.name,
        run=lambda wildcards: plan.of_model(wildcards.dataset, wildcards.prior).name,
        device=plan.settings.device,
    params:
        options=lambda wildcards: plan.prior_options(wildcards.dataset, wildcards.prior),
    shell:
        "sis prior --experiment {resources.experiment} --dataset {wildcards.dataset} --run {resources.run}"
        " --pairs {input.pairs} {params.options} --device {resources.device} --out {output.prior} 2>&1 | tee {log}"
