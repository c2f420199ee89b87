# Rebuilds what changed: `make reproduce`. The stamps under runs/ are not in git, so a fresh clone runs everything.
# Executed notebooks are logs, so a failed one keeps its traceback.
import os

PHASES = sorted(glob_wildcards("params/{phase,phase_1_.*}.yaml").phase)
# --config profile=full trains the trunk on all images; --config seeds=0,1,2 repeats each phase.
SEEDS = str(config.get("seeds", "0")).split(",")
METRICS = "reports/metrics"
REPORTS = sorted(glob_wildcards("eelib/templates/{name}.md.j2").name)
PHASE_METRICS = expand(METRICS + "/phases/{phase}_seed{seed}.json", phase=PHASES, seed=SEEDS)
# asked for beside the metrics: those are in git, and a fresh clone must run the phases all the same
PHASE_STAMPS = expand("runs/stamps/{phase}_seed{seed}", phase=PHASES, seed=SEEDS)
PHASE_CODE = [
    *("data", "anchors", "matching", "model", "losses", "confidence", "routing", "recorded", "recorded_loss"),
    *("checkpoints", "train", "feature_cache", "phases", "mechanisms", "scorecard"),
]
WHOLE = {"model.train_trunk": "true", "optim.trunk_lr_factor": "0.1", "data.limit": "null", "data.val_limit": "null"}
FULL = " ".join(f"--set {k}={v}" for k, v in WHOLE.items()) if config.get("profile") == "full" else ""
RUN = "eelib run {input.notebook} --params {input.params} --out {log}"


wildcard_constraints:
    phase=r"phase_1_\w+",
    seed=r"\d+",
    part=r"\d+",


STAGES = [
    *("record", "data", "matching", "preflight", "baseline", "exits", "scorecard", "causal", "policies"),
    *("validation", "detector", "acceleration", "dissertation", "reports"),
]


rule all:
    input:
        expand("runs/stamps/{stage}", stage=STAGES),


rule record:
    input:
        notebook="notebooks/00_record.ipynb",
        params="params/report_record.yaml",
        code=expand("eelib/{module}.py", module=["record", "record_figures", "architecture", "confidence"]),
        data=expand("data/record/{file}", file=sorted(glob_wildcards("data/record/{file,[^/]+}").file)),
    output:
        "reports/tables/record_outcomes.csv",
        touch("runs/stamps/record"),
    log:
        "reports/executed/00_record.ipynb",
    shell:
        RUN


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


rule preflight:
    input:
        notebook="notebooks/02b_preflight.ipynb",
        params="params/report_preflight.yaml",
        phases=expand("params/{p}.yaml", p=PHASES),
        code=["eelib/diagnose.py", "eelib/recorded_loss.py", "eelib/confidence.py", "eelib/routing.py"],
    output:
        "reports/tables/preflight.csv",
        touch("runs/stamps/preflight"),
    log:
        "reports/executed/02b_preflight.ipynb",
    shell:
        RUN


rule baseline:
    input:
        notebook="notebooks/03_baseline.ipynb",
        params="params/report_full.yaml",
        weights=expand("checkpoints/{name}", name=sorted(glob_wildcards("checkpoints/{name,baseline.*pth|records/baseline.*}").name)),
    output:
        f"{METRICS}/baseline.json",
        touch("runs/stamps/baseline"),
    log:
        "reports/executed/03_baseline.ipynb",
    shell:
        RUN


# Not a stage of `all`: `snakemake --cores 2 learning_curve` trains for half an hour. It continues what is in runs/.
rule learning_curve:
    input:
        params="params/learning_curve.yaml",
        start="runs/pretrained/start.pth",  # of `make pretrained`
        code="eelib/learning_curve.py",
        data=["data/showroom/train.json", "data/showroom/val.json"],
    output:
        f"{METRICS}/learning_curve.json",
    threads: workflow.cores
    shell:
        "eelib learning-curve {input.params}"


# Not a stage of `all`: it renders for four minutes. Needs requirements-render.lock and `make furniture`.
rule generalisation:
    input:
        weights="checkpoints/baseline.pth",
        code="eelib/generalisation.py",
        data=["data/showroom/train.json", "data/showroom/val.json"],
    output:
        f"{METRICS}/generalisation.json",
    threads: workflow.cores
    shell:
        "python -m showroom render --split train --scenes 90 --seed 777 --out runs/new_scenes"
        " && eelib generalisation --rendered runs/new_scenes"


rule exits:
    input:
        notebook="notebooks/04_exits.ipynb",
        params="params/report_exits.yaml",
        weights=expand("checkpoints/{name}", name=sorted(glob_wildcards("checkpoints/{name,exits.*pth|records/.*}").name)),
        code=["eelib/validation.py", "eelib/records.py", "eelib/routed_ap.py"],
    output:
        f"{METRICS}/exits.json",
        f"{METRICS}/training.json",
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
        code=expand("eelib/{module}.py", module=PHASE_CODE),
    output:
        METRICS + "/phases/{phase}_seed{seed}.json",
        touch("runs/stamps/{phase}_seed{seed}"),
    log:
        "reports/executed/05_routing_{phase}_seed{seed}.ipynb",
    threads: 1  # two phases side by side are faster than one on two cores
    shell:
        "OMP_NUM_THREADS={threads} " + RUN + " --set seed={wildcards.seed} " + FULL


rule scorecard:
    input:
        notebook="notebooks/05b_scorecard.ipynb",
        params="params/report_tables.yaml",
        metrics=PHASE_METRICS,
        stamps=PHASE_STAMPS,
    output:
        f"{METRICS}/phases.json",
        touch("runs/stamps/scorecard"),
    log:
        "reports/executed/05b_scorecard.ipynb",
    shell:
        RUN


rule causal:
    input:
        notebook="notebooks/05c_causal.ipynb",
        params="params/causal.yaml",
        base="params/phase_1_4.yaml",
        weights="checkpoints/baseline.pth",
        code=expand("eelib/{module}.py", module=[*PHASE_CODE, "causal"]),
    output:
        f"{METRICS}/causal.json",
        touch("runs/stamps/causal"),
    log:
        "reports/executed/05c_causal.ipynb",
    threads: 1
    priority: 1  # one long job: start it first
    shell:
        "OMP_NUM_THREADS={threads} " + RUN


# Not in `all`: some 25 minutes on two cores. `snakemake --cores 2 ablation`; a stopped run goes on.
rule ablation_part:
    input:
        params="params/ablation.yaml",
        base="params/phase_2_0_recorded.yaml",
        weights="checkpoints/baseline.pth",
        code=expand("eelib/{module}.py", module=[*PHASE_CODE, "causal", "ablation"]),
    output:
        touch("runs/stamps/ablation_{part}"),
    threads: 1  # two parts side by side
    shell:
        "OMP_NUM_THREADS={threads} eelib ablate {input.params} --part {wildcards.part}/2"


rule ablation:
    input:
        notebook="notebooks/05e_ablation.ipynb",
        params="params/ablation.yaml",
        parts=expand("runs/stamps/ablation_{part}", part=[1, 2]),
    output:
        f"{METRICS}/ablation.json",
        touch("runs/stamps/ablation"),
    log:
        "reports/executed/05e_ablation.ipynb",
    shell:
        RUN


rule policies:
    input:
        notebook="notebooks/05d_policies.ipynb",
        params="params/report_policies.yaml",
        weights="checkpoints/exits.pth",
        seeds=sorted(f"checkpoints/{n}" for n in glob_wildcards("checkpoints/{name,exits_seed.*pth|records/exits_seed.*}").name),
        times=f"{METRICS}/exits.json",
        peers=[path for path in [f"{METRICS}/static.json"] if os.path.exists(path)],  # of `compress`, if run
        code=expand("eelib/{m}.py", m=["records", "routed_ap", "calibrate", "gates", "splits", "policies", "curves", "guarantee", "predictability"]),
    output:
        expand(METRICS + "/{m}.json", m=["routing", "calibration", "guarantee", "predictability"]),
        touch("runs/stamps/policies"),
    log:
        "reports/executed/05d_policies.ipynb",
    shell:
        RUN


rule validation:
    input:
        notebook="notebooks/06_validation.ipynb",
        params="params/report_validation.yaml",
        options="params/report_policies.yaml",
        weights="checkpoints/exits.pth",
        metrics=[f"{METRICS}/baseline.json", f"{METRICS}/exits.json", *PHASE_METRICS],
        stamps=PHASE_STAMPS,
        records=f"{METRICS}/routing.json",  # 05d leaves the exit records behind
        code=["eelib/validation.py", "eelib/splits.py", "eelib/policies.py"],
    output:
        "reports/tables/validation.csv",
        f"{METRICS}/validation.json",
        touch("runs/stamps/validation"),
    log:
        "reports/executed/06_validation.ipynb",
    shell:
        RUN


rule bench:
    input:
        weights="checkpoints/exits.pth",
        code=["eelib/runtime.py", "eelib/deploy.py", "eelib/bench.py"],
    output:
        f"{METRICS}/bench.json",
        touch("runs/stamps/bench"),
    threads: workflow.cores  # alone: a neighbour would be measured too
    shell:
        "eelib bench"  # five minutes; --quick would replace the whole one in reports/


rule acceleration:
    input:
        notebook="notebooks/07_acceleration.ipynb",
        params="params/report_acceleration.yaml",
        metrics=f"{METRICS}/bench.json",
        stamp="runs/stamps/bench",
        alternatives=[path for path in [f"{METRICS}/compress.json"] if os.path.exists(path)],  # of `compress`, if run
    output:
        f"{METRICS}/acceleration.json",
        touch("runs/stamps/acceleration"),
    log:
        "reports/executed/07_acceleration.ipynb",
    shell:
        RUN


# Not part of `all`: it trains for four hours. `snakemake --cores 2 compress`; a killed run goes on.
rule compress:
    input:
        params="params/compress.yaml",
        weights=["checkpoints/baseline.pth", "checkpoints/exits.pth"],
        code=expand("eelib/{m}.py", m=["prune", "variants", "search", "systems", "compress", "losses"]),
    output:
        # not the metrics: `all` reads the committed ones and must never train for them
        touch("runs/stamps/compress"),
    threads: workflow.cores  # alone: a neighbour would be measured too
    shell:
        "eelib compress {input.params}"


rule detector:
    input:
        notebook="notebooks/06b_detector.ipynb",
        params="params/report_detector.yaml",
        phase=f"{METRICS}/phases/phase_1_4_seed0.json",
        stamp="runs/stamps/phase_1_4_seed0",
        code="eelib/inference.py",
    output:
        f"{METRICS}/detector_1_4.json",
        touch("runs/stamps/detector"),
    log:
        "reports/executed/06b_detector.ipynb",
    shell:
        RUN


rule dissertation:
    input:
        notebook="notebooks/08_dissertation.ipynb",
        params="params/report_tables.yaml",
        metrics=[f"{METRICS}/exits.json", f"{METRICS}/phases.json"],
    output:
        touch("runs/stamps/dissertation"),
    log:
        "reports/executed/08_dissertation.ipynb",
    shell:
        RUN


rule reports:
    input:
        metrics=expand(METRICS + "/{name}.json", name=["baseline", "exits", "phases", "causal", "detector_1_4"]),
        routing=expand(METRICS + "/{name}.json", name=["routing", "guarantee", "predictability"]),
        alternatives=[path for path in [f"{METRICS}/compress.json"] if os.path.exists(path)],  # of `compress`, if run
        templates=expand("eelib/templates/{name}.md.j2", name=REPORTS),
        code=["eelib/reports.py", "eelib/alternatives.py"],
    output:
        touch("runs/stamps/reports"),
    shell:
        "eelib report"
