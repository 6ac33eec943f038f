rule train:
    input:
        unpack(
            lambda wildcards: plan.training_inputs(wildcards.dataset, wildcards.model)
        ),
        pairs=plan.pairs("{dataset}", "train"),
        # Nothing is trained on a dataset whose splits overlap.
        card=plan.dataset_card("{dataset}"),
    output:
        model=plan.model("{dataset}", "{model}"),
    log:
        "logs/train/{dataset}.{model}.log",
    wildcard_constraints:
        model=plan.pattern(plan.models(imported=False)),
    # The launcher submits again by itself what is worth it.
    retries: 0
    conda:
        "../envs/sis.yaml"
    threads: plan.experiment.threads
    resources:
        # Who asks and where a job runs are no parameters: another experiment with the same model, or another device, must
        # not invalidate finished work.
        experiment=plan.experiment.name,
        run=lambda wildcards: plan.of_model(wildcards.dataset, wildcards.model).name,
        device=plan.settings.device,
        # `snakemake --set-resources train:launcher=...` or a profile says otherwise than config/config.yaml.
        launcher=plan.settings.launcher,
    params:
        options=lambda wildcards: plan.training_options(
            wildcards.dataset, wildcards.model
        ),
    shell:
        "sis train --experiment {resources.experiment} --dataset {wildcards.dataset} --run {resources.run}"
        " --pairs {input.pairs} {params.options} --device {resources.device} --out {output.model}"
        " --expect {wildcards.model} --launcher {resources.launcher} 2>&1 | (trap '' INT TERM HUP; tee {log})"


# The launcher only waits: training is a job of its own, which saves its state and goes on.
localrules:
    train,


# A run whose weights somebody else trained: `checkpoint:` names their file.
rule import_checkpoint:
    input:
        file=lambda wildcards: plan.checkpoint(wildcards.dataset, wildcards.model),
    output:
        model=plan.model("{dataset}", "{model}"),
    log:
        "logs/import/{dataset}.{model}.log",
    wildcard_constraints:
        model=plan.pattern(plan.models(imported=True)),
    conda:
        "../envs/sis.yaml"
    resources:
        **native_resources(
            site, lambda wildcards: light(plan.needs("prepare", wildcards.dataset))
        ),
        # Who asks is no parameter: another experiment with the same model must not invalidate finished work.
        experiment=plan.experiment.name,
        run=lambda wildcards: plan.of_model(wildcards.dataset, wildcards.model).name,
    params:
        weights=lambda wildcards: plan.checkpoint_option(
            wildcards.dataset, wildcards.model
        ),
    shell:
        "sis checkpoint import {input.file:q} --experiment {resources.experiment} --dataset {wildcards.dataset}"
        " --run {resources.run} {params.weights} --out {output.model} 2>&1 | tee {log}"


# What latent methods train on: the training split, encoded once by an autoencoder.
rule encode:
    input:
        pairs=plan.pairs("{dataset}", "train"),
        model=lambda wildcards: plan.model(
            wildcards.dataset,
            plan.encoder(wildcards.dataset, wildcards.latents).model_id,
        ),
    output:
        manifest=plan.latents("{dataset}", "{latents}"),
    log:
        "logs/encode/{dataset}.{latents}.log",
    wildcard_constraints:
        latents=plan.pattern(plan.latents_ids()),
    conda:
        "../envs/sis.yaml"
    threads: plan.experiment.threads
    resources:
        **native_resources(
            site,
            lambda wildcards: plan.encoder(wildcards.dataset, wildcards.latents).needs(
                "encode"
            ),
        ),
        # Who asks and where a job runs are no parameters: another experiment with the same latents, or another device, must
        # not invalidate finished work.
        experiment=plan.experiment.name,
        run=lambda wildcards: plan.encoder(wildcards.dataset, wildcards.latents).name,
        device=plan.settings.device,
    params:
        out=subpath(output.manifest, parent=True),
        mirrored=lambda wildcards: (
            "--mirrored" if wildcards.latents.endswith("-mirrored") else ""
        ),
    shell:
        "sis encode --experiment {resources.experiment} --dataset {wildcards.dataset} --run {resources.run}"
        " --pairs {input.pairs} --model {input.model} {params.mirrored} --device {resources.device}"
        " --out {params.out} 2>&1 | tee {log}"


# A model that is the mean of others: of those whose images were judged best.
rule average:
    input:
        unpack(
            lambda wildcards: plan.ensemble_inputs(wildcards.dataset, wildcards.model)
        ),
    output:
        model=plan.model("{dataset}", "{model}"),
    log:
        "logs/average/{dataset}.{model}.log",
    wildcard_constraints:
        model=plan.pattern(plan.ensembles()),
    conda:
        "../envs/sis.yaml"
    resources:
        **native_resources(
            site, lambda wildcards: light(plan.needs("prepare", wildcards.dataset))
        ),
        # Who asks is no parameter: another experiment with the same model must not invalidate finished work.
        experiment=plan.experiment.name,
        run=lambda wildcards: plan.of_model(wildcards.dataset, wildcards.model).name,
    params:
        options=lambda wildcards: plan.ensemble_options(
            wildcards.dataset, wildcards.model
        ),
    shell:
        "sis average --experiment {resources.experiment} --dataset {wildcards.dataset} --run {resources.run}"
        " {params.options} --out {output.model} 2>&1 | tee {log}"
