# The folder that the demo hands in as somebody's published images (method row_colours, kind images).
rule demo_row_colours:
    input:
        train=plan.pairs("{dataset}", "train"),
        val=plan.pairs("{dataset}", "val"),
    output:
        folder=directory("artefacts/demo/row_colours/{dataset}"),
    log:
        "logs/demo/{dataset}.row_colours.log",
    conda:
        "../envs/sis.yaml"
    shell:
        "python examples/row_colours.py {input.train} {input.val} {output.folder} 2>&1 | tee {log}"


localrules:
    demo_row_colours,
