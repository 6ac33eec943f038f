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
    # The launcher submits again by itself what is worth it.
    retries: 0
    conda:
        "../envs/sis.yaml"
    threads: plan.experiment.threads
    resources:
        # Who asks and where a job runs are no parameters: another experiment with the same images, or another device, must
        # not invalidate finished work.
        experiment=plan.experiment.name,
        device=plan.settings.device,
        # `snakemake --set-resources sample:launcher=...` or a profile says otherwise than config/config.yaml.
        launcher=plan.settings.launcher,
    params:
        out=subpath(output.manifest, parent=True),
        options=lambda wildcards: plan.sampling_options(
            wildcards.dataset, wildcards.run_id
        ),
    shell:
        "sis sample --experiment {resources.experiment} --dataset {wildcards.dataset} --run {wildcards.run_id}"
        " --pairs {input.pairs} {params.options} --device {resources.device} --out {params.out}"
        " --expect {wildcards.run_id} --launcher {resources.launcher} 2>&1 | (trap '' INT TERM HUP; tee {log})"


# The launcher only waits: the shards are sampled by jobs of their own.
localrules:
    sample,
