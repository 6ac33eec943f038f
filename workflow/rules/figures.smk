# `snakemake figures`: the figures of a paper from the image sets of the experiment; `all` does not ask for them.
# SDM's Fig. 10: one sample of every run.
rule figure_comparison:
    input:
        images=lambda wildcards: [
            plan.images(spec.dataset.name, spec.run_id)
            for spec in plan.runs
            if spec.dataset.name == wildcards.dataset
        ],
        pairs=plan.all_pairs(),
    output:
        figure=plan.published("figures/{dataset}/comparison.png"),
    log:
        "logs/figures/{dataset}.comparison.log",
    conda:
        "../envs/sis.yaml"
    params:
        experiment=plan.experiment.name,
        artefacts=lambda wildcards: plan.root,
    shell:
        "sis figure comparison --experiment {params.experiment} --dataset {wildcards.dataset}"
        " --artefacts {params.artefacts} --out {output.figure} 2>&1 | tee {log}"


# SDM's Fig. 9: many samples of one run.
rule figure_multimodal:
    input:
        images=lambda wildcards: plan.images(
            wildcards.dataset, plan.spec(wildcards.dataset, wildcards.run).run_id
        ),
        pairs=lambda wildcards: plan.sampling_inputs(wildcards.dataset, wildcards.run)[
            "pairs"
        ],
    output:
        figure=plan.published("figures/{dataset}/samples-{run}.png"),
    log:
        "logs/figures/{dataset}.samples-{run}.log",
    wildcard_constraints:
        run=plan.pattern(sorted({spec.name for spec in plan.runs})),
    conda:
        "../envs/sis.yaml"
    params:
        experiment=plan.experiment.name,
        artefacts=lambda wildcards: plan.root,
        # A run keeps its name when its parameters change; its figure must not.
        run_id=lambda wildcards: plan.spec(wildcards.dataset, wildcards.run).run_id,
    shell:
        "sis figure multimodal --experiment {params.experiment} --dataset {wildcards.dataset}"
        " --run {params.run_id} --artefacts {params.artefacts} --out {output.figure} 2>&1 | tee {log}"


rule figures:
    input:
        [
            plan.published(f"figures/{dataset}/comparison.png")
            for dataset in plan.experiment.datasets
        ],
        [
            plan.published(f"figures/{spec.dataset.name}/samples-{spec.name}.png")
            for spec in plan.runs
            if spec.samples_per_map > 1 and spec.method.kind != "rule"
        ],


localrules:
    figure_comparison,
    figure_multimodal,
    figures,
