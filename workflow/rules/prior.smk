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
        **native_resources(
            site,
            lambda wildcards: plan.of_model(wildcards.dataset, wildcards.prior).needs(
                "prior"
            ),
        ),
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


# `snakemake priors`: what every prior of latents rests on, in numbers and pictures; `all` does not ask for it.
rule describe_prior:
    input:
        prior=plan.prior("{dataset}", "{prior}"),
        pairs=lambda wildcards: plan.pairs(
            wildcards.dataset,
            plan.of_model(wildcards.dataset, wildcards.prior).protocol.split,
        ),
        autoencoder=lambda wildcards: plan.model(
            wildcards.dataset,
            plan.prior_encoder(wildcards.dataset, wildcards.prior).model_id,
        ),
    output:
        text=plan.prior_report("{dataset}", "{prior}", "prior.md"),
        facts=plan.prior_report("{dataset}", "{prior}", "prior.json"),
        picture=report(
            plan.prior_report("{dataset}", "{prior}", "prior.png"),
            caption="../report/prior.rst",
            category="Priors",
            labels={"dataset": "{dataset}"},
        ),
    log:
        "logs/prior/{dataset}.{prior}.report.log",
    conda:
        "../envs/sis.yaml"
    resources:
        **native_resources(
            site,
            lambda wildcards: plan.of_model(wildcards.dataset, wildcards.prior).needs(
                "prior"
            ),
        ),
        experiment=plan.experiment.name,
        run=lambda wildcards: plan.of_model(wildcards.dataset, wildcards.prior).name,
        device=plan.settings.device,
    params:
        out=subpath(output.text, parent=True),
    shell:
        "sis prior-report --experiment {resources.experiment} --dataset {wildcards.dataset} --run {resources.run}"
        " --prior {input.prior} --pairs {input.pairs} --autoencoder {input.autoencoder} --device {resources.device}"
        " --out {params.out} 2>&1 | tee {log}"


rule priors:
    input:
        plan.prior_reports(),


localrules:
    priors,
