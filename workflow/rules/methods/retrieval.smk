"""Retrieval: the training photograph whose label map agrees best."""


rule retrieval_match:
    input:
        train=plan.pairs("{dataset}", "train"),
        asked=plan.pairs("{dataset}", "val"),
    output:
        matches=f"{plan.root}/retrieval/{{dataset}}/matches.json",
    log:
        "logs/retrieval/{dataset}.match.log",
    conda:
        "../../envs/sis.yaml"
    resources:
        **native_resources(
            site, lambda wildcards: plan.needs("prepare", wildcards.dataset)
        ),
    shell:
        "python examples/retrieval.py match {input.train} {input.asked} {output.matches} 2>&1 | tee {log}"


rule retrieval:
    input:
        train=plan.pairs("{dataset}", "train"),
        asked=plan.pairs("{dataset}", "val"),
        matches=rules.retrieval_match.output.matches,
    output:
        manifest=plan.images("{dataset}", "{run_id}"),
        folder=temp(directory(f"{plan.root}/retrieval/{{dataset}}/{{run_id}}")),
    log:
        "logs/retrieval/{dataset}.{run_id}.log",
    wildcard_constraints:
        run_id=plan.pattern(plan.run_ids(method="retrieval")),
    conda:
        "../../envs/sis.yaml"
    resources:
        **native_resources(
            site, lambda wildcards: plan.needs("prepare", wildcards.dataset)
        ),
    shell:
        "(python examples/retrieval.py images {input.train} {input.matches} {output.folder} &&"
        " sis import {output.folder} --pairs {input.asked} --name retrieval --run-id {wildcards.run_id} --kind rule"
        " --title Retrieval --out {output.manifest}) 2>&1 | tee {log}"
