# Rebuilds what changed: `make reproduce`. The stamps under runs/ are not in git, so a fresh clone runs everything.
# Executed notebooks are logs, so a failed one keeps its traceback.
PHASES = sorted(glob_wildcards("params/{phase,phase_1_.*}.yaml").phase)
METRICS = "reports/metrics"
RUN = "eelib run {input.notebook} --params {input.params} --out {log}"


wildcard_constraints:
    phase=r"phase_1_\w+",


rule all:
    input:
        expand("runs/stamps/{stage}", stage=["data", "matching", "baseline", "exits", *PHASES, "policies", "validation", "dissertation"]),


rule data:
    input:
        notebook="notebooks/01_data.ipynb",
        params="params/report_data.yaml",
    output:
        "reports/tables/data_counts.csv",
        touch("runs/stamps/data"),
    log:
        "reports/executed/01_data.ipynb",
    shell:
        RUN


rule matching:
    input:
        notebook="notebooks/02_anchor_matching.ipynb",
        params="params/report_matching.yaml",
        code=["eelib/anchors.py", "eelib/matching.py"],
    output:
        "reports/tables/matching_quality.csv",
        touch("runs/stamps/matching"),
    log:
        "reports/executed/02_anchor_matching.ipynb",
    shell:
        RUN


rule baseline:
    input:
        notebook="notebooks/03_baseline.ipynb",
        params="params/report_full.yaml",
        weights="checkpoints/baseline.pth",
    output:
        f"{METRICS}/baseline.json",
        touch("runs/stamps/baseline"),
    log:
        "reports/executed/03_baseline.ipynb",
    shell:
        RUN


rule exits:
    input:
        notebook="notebooks/04_exits.ipynb",
        params="params/report_exits.yaml",
        weights="checkpoints/exits.pth",
    output:
        f"{METRICS}/exits.json",
        touch("runs/stamps/exits"),
    log:
        "reports/executed/04_exits.ipynb",
    threads: 2
    shell:
        RUN


rule phase:
    input:
        notebook="notebooks/05_routing.ipynb",
        params="params/{phase}.yaml",
        weights="checkpoints/baseline.pth",
        code=["eelib/recorded.py", "eelib/confidence.py", "eelib/routing.py", "eelib/phases.py"],
    output:
        METRICS + "/{phase}.json",
        touch("runs/stamps/{phase}"),
    log:
        "reports/executed/05_routing_{phase}.ipynb",
    threads: 2  # the branches use both cores of a small machine
    shell:
        RUN


rule policies:
    input:
        notebook="notebooks/05c_policies.ipynb",
        params="params/report_policies.yaml",
        weights="checkpoints/exits.pth",
        times=f"{METRICS}/exits.json",
        code=expand("eelib/{m}.py", m=["records", "routed_ap", "calibrate", "gates", "policies", "curves", "guarantee"]),
    output:
        expand(METRICS + "/{m}.json", m=["routing", "calibration", "guarantee"]),
        touch("runs/stamps/policies"),
    log:
        "reports/executed/05c_policies.ipynb",
    shell:
        RUN


rule validation:
    input:
        notebook="notebooks/06_validation.ipynb",
        params="params/report_tables.yaml",
        metrics=[f"{METRICS}/baseline.json", f"{METRICS}/exits.json", *expand(METRICS + "/{p}.json", p=PHASES)],
    output:
        "reports/tables/validation.csv",
        touch("runs/stamps/validation"),
    log:
        "reports/executed/06_validation.ipynb",
    shell:
        RUN


rule dissertation:
    input:
        notebook="notebooks/08_dissertation.ipynb",
        params="params/report_tables.yaml",
        metrics=[f"{METRICS}/exits.json", *expand(METRICS + "/{p}.json", p=PHASES)],
    output:
        f"{METRICS}/phases.json",
        touch("runs/stamps/dissertation"),
    log:
        "reports/executed/08_dissertation.ipynb",
    shell:
        RUN
