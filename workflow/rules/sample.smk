# One rule for every method that the harness runs: kinds python, command and images.
# Methods with a rule of their own (kind rule) lie in workflow/rules/methods.
rule sample:
    input:
        unpack(
            lambda wildcards: plan.sampling_inputs(wildcards.dataset, wildcards.run_id)
        ),
    output:
        manifest=plan.images("{dataset}", "{run_id}"),
    log:
        "logs/sample/{dataset}.{run_id}.log",
    wildcard_constraints:
        run_id=plan.pattern(plan.run_ids("python", "command", "images")),
    conda:
        "../envs/sis.yaml"
    threads: plan.experiment.threads
    resources:
        # Where a job runs is no parameter: another device must not invalidate finished work.
        device=plan.settings.device,
    params:
        experiment=plan.experiment.name,
        out=subpath(output.manifest, parent=True),
        options=lambda wildcards: plan.sampling_options(
            wildcards.dataset, wildcards.run_id
        ),
    shell:
        "sis sample --experiment {params.experiment} --dataset {wildcards.dataset} --run {wildcards.run_id}"
        " --pairs {input.pairs} {params.options} --device {resources.device} --out {params.out} 2>&1 | tee {log}"
