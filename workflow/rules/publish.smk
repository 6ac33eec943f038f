rule publish:
    input:
        scores=plan.all_scores(),
        images=plan.all_images(),
        pairs=plan.all_pairs(),
        cards=plan.all_dataset_cards(),
        papers=plan.published_tables(),
    output:
        scores=plan.published("scores.parquet"),
        page=report(
            plan.published("leaderboard.html"),
            caption="../report/leaderboard.rst",
            category="Leaderboard",
        ),
        data=plan.published("leaderboard.json"),
        manifest=plan.published("manifest.json"),
        tables=report(
            directory(plan.published("tables")),
            patterns=["{table}.md", "{table}.csv"],
            caption="../report/tables.rst",
            category="Tables",
            labels={"table": "{table}"},
        ),
        gallery=report(
            directory(plan.published("gallery")),
            patterns=["{sheet}.png"],
            caption="../report/gallery.rst",
            category="Gallery",
            labels={"sheet": "{sheet}"},
        ),
    log:
        plan.log("publish"),
    conda:
        "../envs/sis.yaml"
    params:
        out=subpath(output.page, parent=True),
        experiment=plan.experiment.name,
        artefacts=lambda wildcards: plan.root,
    shell:
        "sis publish --experiment {params.experiment} --artefacts {params.artefacts}"
        " --out {params.out} 2>&1 | tee {log}"


localrules:
    publish,
