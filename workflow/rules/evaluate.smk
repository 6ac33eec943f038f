rule train_segmenter:
    input:
        pairs=lambda wildcards: plan.pairs(
            plan.of_judge(wildcards.judge).dataset, "train"
        ),
    output:
        model=plan.segmenter("{judge}"),
    log:
        "logs/evaluate/{judge}.log",
    conda:
        "../envs/sis.yaml"
    threads: plan.experiment.threads
    resources:
        **native_resources(
            site,
            lambda wildcards: plan.needs(
                "evaluate", plan.of_judge(wildcards.judge).dataset
            ),
        ),
        # Who asks is no parameter: another protocol with the same segmenter must not invalidate finished work.
        protocol=lambda wildcards: plan.of_judge(wildcards.judge).name,
    shell:
        "python -m evaluators train-segmenter --protocol {resources.protocol} --pairs {input.pairs}"
        " --threads {threads} --out {output.model} 2>&1 | tee {log}"


rule measure_reference:
    input:
        unpack(
            lambda wildcards: plan.measuring_inputs(wildcards.protocol, reference=True)
        ),
    output:
        manifest=plan.reference("{dataset}", "{protocol}"),
    log:
        "logs/evaluate/{dataset}.{protocol}.reference.log",
    conda:
        "../envs/sis.yaml"
    threads: plan.experiment.threads
    resources:
        **native_resources(
            site, lambda wildcards: plan.needs("evaluate", wildcards.dataset)
        ),
    params:
        out=subpath(output.manifest, parent=True),
        # A changed card runs this again; partials that it does not concern are kept in the folder.
        card=lambda wildcards: plan.protocol_hash(wildcards.protocol),
        options=lambda wildcards: plan.measuring_options(
            wildcards.protocol, reference=True
        ),
        weights=plan.settings.weights,
        device=plan.settings.device,
    shell:
        "python -m evaluators measure --protocol {wildcards.protocol} {params.options} --weights {params.weights}"
        " --device {params.device} --threads {threads} --out {params.out} 2>&1 | tee {log}"


rule measure:
    input:
        unpack(lambda wildcards: plan.measuring_inputs(wildcards.protocol)),
        images=plan.images("{dataset}", "{run_id}"),
    output:
        manifest=plan.partials("{dataset}", "{run_id}", "{protocol}"),
    log:
        "logs/evaluate/{dataset}.{run_id}.{protocol}.measure.log",
    wildcard_constraints:
        run_id=plan.pattern(plan.run_ids()),
    # One Slurm job for both; without a cluster groups mean nothing.
    group:
        "judge"
    conda:
        "../envs/sis.yaml"
    threads: plan.experiment.threads
    resources:
        **native_resources(
            site,
            lambda wildcards: plan.spec(wildcards.dataset, wildcards.run_id).needs(
                "evaluate"
            ),
        ),
    params:
        out=subpath(output.manifest, parent=True),
        # A changed card runs this again; partials that it does not concern are kept in the folder.
        card=lambda wildcards: plan.protocol_hash(wildcards.protocol),
        options=lambda wildcards: plan.measuring_options(wildcards.protocol),
        weights=plan.settings.weights,
        device=plan.settings.device,
    shell:
        "python -m evaluators measure --protocol {wildcards.protocol} --images {input.images} {params.options}"
        " --weights {params.weights} --device {params.device} --threads {threads} --out {params.out} 2>&1 | tee {log}"


rule score:
    input:
        partials=plan.partials("{dataset}", "{run_id}", "{protocol}"),
        reference=plan.reference("{dataset}", "{protocol}"),
    output:
        scores=plan.scores("{dataset}", "{run_id}", "{protocol}"),
    log:
        "logs/evaluate/{dataset}.{run_id}.{protocol}.score.log",
    wildcard_constraints:
        run_id=plan.pattern(plan.run_ids()),
    group:
        "judge"
    conda:
        "../envs/sis.yaml"
    threads: plan.experiment.threads
    resources:
        **native_resources(
            site,
            lambda wildcards: plan.spec(wildcards.dataset, wildcards.run_id).needs(
                "evaluate"
            ),
            hours=0.5,
        ),
    params:
        card=lambda wildcards: plan.protocol_hash(wildcards.protocol),
    shell:
        "python -m evaluators score --protocol {wildcards.protocol} --partials {input.partials}"
        " --reference {input.reference} --threads {threads} --out {output.scores} 2>&1 | tee {log}"
