"""A notebook over all combinations of some parameters: a JSON per cell, and all of them in one table.

The YAML named by ``--config sweep=`` holds `notebook`, `parameters` (a list of values each) and, if wanted, `profile`
(parameters that all cells share) and `out`.
"""

from zoo import read_sweep

SWEEP = read_sweep(config["sweep"]) if "sweep" in config else None

if SWEEP:

    localrules:
        sweep,

    rule sweep:
        """One row per cell: the cell's parameters, and the numbers that the notebook wrote."""
        input:
            expand(f"{SWEEP.out}/cells/{{cell}}.json", cell=SWEEP.cells),
        output:
            f"{SWEEP.out}/table.csv",
        run:
            SWEEP.gather(input, output[0])

    rule notebook:
        output:
            f"{SWEEP.out}/cells/{{cell}}.json",
        wildcard_constraints:
            cell=stems(SWEEP.cells),
        params:
            arguments=lambda wildcards, output: SWEEP.arguments(wildcards.cell, output[0]),
        log:
            f"{SWEEP.out}/logs/{{cell}}.log",
        threads: 1
        retries: 2
        resources:
            mem_mb=memory,
            runtime=minutes,
        shell:
            "export OMP_NUM_THREADS={threads}; "
            f"{quote(sys.executable)} {quote(str(FLOW.parent / 'tools/run_notebooks.py'))} {{params.arguments}} >> {{log:q}} 2>&1"
