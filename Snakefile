# Rebuilds what changed: `make reproduce`. Everything is written to runs/reports; no output of a rule is a tracked file.
# What `all` does not make, because it takes hours or belongs to a seed that was not asked for, is copied there from
# reports/, unless runs/reports has a newer one. So the rules read runs/reports alone, with one exception: routing rests
# on the committed times of the exits, as long as they are of the released weights, so that its results can be compared.
import json
import shutil
from glob import glob
from pathlib import Path

import yaml

from studies.rebuild import alone, code, committed, forget, parameters

ALIVE = alone("runs/alive", ".snakemake/locks")
OUT = "runs/reports"
PHASES = sorted(glob_wildcards("params/{phase,phase_1_.*}.yaml").phase)
# --config profile=full trains the phases' trunk, on all images; --config seeds=0,1,2 repeats each phase. The serious
# profile, more steps with a frozen trunk, is a target of its own, since its results stand beside these.
SEEDS = str(config.get("seeds", "0")).split(",")
WHOLE = " model.train_trunk=true optim.trunk_lr_factor=0.1 data.limit=null data.val_limit=null"
# With setpriv a job dies with Snakemake and its kernel follows, so that no orphan writes beside the next run.
JOB = "exec " + ("setpriv --pdeathsig KILL " if shutil.which("setpriv") else "")


def made(names):
    """Files of runs/reports: a table where the name says so, or metrics."""
    return [f"{OUT}/tables/{name}" if name.endswith(".csv") else f"{OUT}/metrics/{name}.json" for name in names.split()]


def stage(notebook, makes, needs=(), settings="", params=None, caches=(), threads=1):
    """What a notebook makes, what it reads besides code, images and its parameter file, and KEY=VALUE for its parameters.

    Caches of its own are deleted where the code is newer.
    """
    return locals()


BASELINE, EXITS, MANIFEST = "checkpoints/baseline.pth", "checkpoints/exits_256.pth", "checkpoints/manifest.json"
PHASES_START = "checkpoints/phases_start.pth"  # the baseline of version 0.1, whose trunk the recorded phases start from
RELEASED = [BASELINE, EXITS, "checkpoints/exits_320.pth", MANIFEST, *glob("checkpoints/matches/*")]
measured, released = (json.loads(Path(file).read_text()) for file in ("reports/metrics/exits.json", MANIFEST))
same = measured["checkpoint_sha256"] == released["exits_256.pth"]["sha256"]
TIMES = f"{'reports' if same else OUT}/metrics/exits.json"
STUDIES = "ablation causal generalisation learning_curve routing_older blank_seed1 blank_seed2 int8_elsewhere"
LONG = committed(f"metrics/{name}.json" for name in STUDIES.split())
PLANE = "reports/metrics/plane.json"
PROFILES = yaml.safe_load(Path("params/profiles.yaml").read_text())
RUNS = {f"{phase}_seed{seed}": (phase, seed) for phase in PHASES for seed in SEEDS}
OTHERS = [name for name in glob_wildcards("reports/metrics/phases/{name}.json").name if name.split("_seed")[1] not in SEEDS]
committed([*(f"phases/{name}/*.csv" for name in OTHERS), "phases/*/*/*.csv"])
SUMMARIES = [*made(" ".join(f"phases/{name}" for name in RUNS)), *committed(f"metrics/phases/{name}.json" for name in OTHERS)]
SERIOUS = committed(["metrics/phases/*/*.json"])  # by profile
REPORTS = [f"{OUT}/{name}" for name in glob_wildcards("studies/report/templates/{name}.j2").name]
READ = f"metrics={OUT}/metrics"

STAGES = {
    "record": stage("00_record", "record_outcomes.csv", glob("data/record/*")),
    "data": stage("01_data", "data_counts.csv"),
    "matching": stage("02_anchor_matching", "matching_quality.csv"),
    "preflight": stage("02b_preflight", "preflight.csv", glob("params/**/*.yaml", recursive=True)),
    "baseline": stage("03_baseline", "baseline", RELEASED + LONG, READ),
    "exits": stage("04_exits", "exits training", RELEASED, threads=workflow.cores),  # alone: neighbours would be timed too
    "scorecard": stage("05b_scorecard", "phases", SUMMARIES + SERIOUS + made("routing"), READ),
    "causal": stage("05c_causal", "causal.csv", LONG, READ),  # trained by `causal_trained`
    "ablation": stage("05e_ablation", "ablation.csv", LONG, READ),  # trained by `ablation_trained`
    "policies": stage(  # reads the committed plane
        "05d_policies", "routing calibration guarantee predictability", settings=f"times={TIMES}",
        needs=[*RELEASED, *LONG, TIMES, PLANE],
    ),
    "blank": stage(  # reads the committed plane
        "05f_blank", "blank guarantees", settings=f"times={TIMES}",
        needs=[*RELEASED, TIMES, PLANE, *glob("reports/metrics/blank_seed*.json")],
    ),
    "validation": stage(
        "06_validation", "validation validation.csv", settings=f"{READ} times={TIMES}",
        needs=[
            *RELEASED, *SUMMARIES, *SERIOUS, *made("baseline exits routing"), TIMES, "params/report_policies.yaml", PLANE,
        ],
    ),
    "detector": stage("06b_detector", "detector_1_4", ["checkpoints/phase_1_4.pth", PHASES_START]),
    "acceleration": stage(
        "07_acceleration", "acceleration", [*RELEASED, *made("bench blank guarantees plane")],
        f"measured={OUT}/metrics/bench.json metrics={OUT}/metrics",
    ),
    "dissertation": stage(
        "08_dissertation", "phases_quick_reference.csv", made("exits phases"), f"{READ} published={OUT}/phases"
    ),
    **{
        name: stage(
            "05_routing", f"phases/{name}", [PHASES_START], f"seed={seed}{WHOLE if config.get('profile') == 'full' else ''}",
            params=phase, caches=[f"runs/{phase}/seed{seed}/identity.json"],
        )
        for name, (phase, seed) in RUNS.items()
    },
}
ALL = [file for row in STAGES.values() for file in made(row["makes"])]


onerror:
    # Snakemake makes an empty log for a job that was killed before it wrote one; here a log is a notebook
    shell(f"mkdir -p {OUT}/executed && find {OUT}/executed -type f -empty -delete")


rule all:
    input:
        ALL,
        REPORTS,


for name, row in STAGES.items():
    notebook, file = f"notebooks/{row['notebook']}.ipynb", f"params/{row['params'] or 'report_' + name}.yaml"
    params, sources = parameters(file) if Path(file).exists() else [], code(notebook)
    # of the executed copies of 05_routing one is published, the others are its likes; a failed one keeps its traceback
    published = name not in RUNS or name == "phase_1_4_seed0"
    executed = f"05_routing_{name}" if name in RUNS else row["notebook"]

    rule:
        name:
            name
        input:
            notebook=notebook,
            code=sources,
            data=glob("data/showroom/*.json"),
            params=params,
            needs=row["needs"],
        output:
            made(row["makes"]),
        log:
            f"{OUT if published else 'runs'}/executed/{executed}.ipynb",
        params:
            forget=forget(row["caches"], sources + params) + forget(["runs/records/*"], code()),
            settings=" ".join(f"--set {setting}" for setting in f"reports={OUT} {row['settings']}".split()),
            file=f"--params {file}" if params else "",
        threads: row["threads"]
        shell:
            "{params.forget}" + JOB + "eelib study run {input.notebook} {params.file} --out {log} {params.settings}"


rule bench:
    input:
        RELEASED,
        code("studies/bench.py"),
    output:
        made("bench"),
    threads: workflow.cores  # alone, as `exits`
    shell:
        JOB + "eelib bench --reports " + OUT


rule reports:
    input:
        made("baseline exits phases detector_1_4 routing guarantee predictability blank guarantees bench plane data_counts.csv"),
        LONG,
        code("studies/report/reports.py"),
        glob("studies/report/templates/*"),
    output:
        REPORTS,
    shell:
        JOB + "eelib study report --reports " + OUT


# AP, intervals and verdicts of the plane once more, from the committed match flags and times.
rule plane_judged:
    input:
        measured=PLANE,
        flags=glob("reports/plane/*.npz"),
        params="params/plane.yaml",
        code=code("studies/compress/plane.py"),
    output:
        made("plane"),
    shell:
        "mkdir -p {OUT}/metrics && cp -R reports/plane {OUT}/ && cp {input.measured} {output} && "
        + JOB + "eelib study plane {input.params} --recompute --reports {OUT}"


# Hours of work, so never part of `all`: `snakemake --cores 2 plane`. What was stopped goes on, by what is in runs/;
# metrics are no outputs, so that nobody waits for hours to read them.
for name, (command, module, needs) in {
    **{  # the trainings side by side, then what they give
        f"{study}_{part}": (f"phases ablate params/{study}.yaml {how}", "phases/ablation", parameters(base) + needs)
        for study, base in (("ablation", "params/phase_2_0_recorded.yaml"), ("causal", "params/phase_1_4.yaml"))
        for part, how, needs in (
            (1, "--part 1/2", []),
            (2, "--part 2/2", []),
            ("trained", f"--reports {OUT}", [f"runs/stamps/{study}_1", f"runs/stamps/{study}_2"]),
        )
    },
    **{  # one training of a phase at more steps, or with one change: `snakemake --cores 1 serious clamped`
        f"{profile}_{phase}": (
            f"phases train params/{phase}.yaml --profile {profile} --reports {OUT}", "phases/scorecard",
            [*parameters(f"params/{phase}.yaml"), "params/profiles.yaml", PHASES_START],
        )
        for profile, phases in PROFILES.items()
        for phase in phases
    },
    "plane": (f"study plane params/plane.yaml --reports {OUT}", "compress/plane", ["params/plane.yaml"]),  # after the trainings
    "learning_curve": (  # after `make pretrained`
        f"study learning-curve params/learning_curve.yaml --reports {OUT}", "learning_curve", ["runs/pretrained/start.pth"]
    ),
    "generalisation": (f"study generalisation --rendered runs/new_scenes --reports {OUT}", "generalisation", ["runs/new_scenes"]),
}.items():

    rule:
        name:
            name
        input:
            RELEASED,
            code(f"studies/{module}.py"),
            needs,
        output:
            touch(f"runs/stamps/{name}"),
        params:
            command=command,
        threads: 1 if command.startswith("phases") else workflow.cores
        shell:
            JOB + "eelib {params.command}"


for profile, phases in PROFILES.items():

    rule:
        name:
            profile
        input:
            [f"runs/stamps/{profile}_{phase}" for phase in phases],


# What of the policies' results is the processor's own: once more, without the instructions that older ones lack. A quarter of
# an hour; 05d must be as committed, since only what has the same images and times is compared.
rule older_processor:
    input:
        RELEASED,
        code("notebooks/05d_policies.ipynb"),
    output:
        touch("runs/stamps/older_processor"),
    shell:
        "rm -rf runs/older && ATEN_CPU_CAPABILITY=default DNNL_MAX_CPU_ISA=AVX MKL_CBWR=COMPATIBLE "
        "OPENBLAS_CORETYPE=Sandybridge eelib study run notebooks/05d_policies.ipynb --params params/report_policies.yaml "
        "--out runs/older/05d_policies.ipynb --set reports=runs/older --set records=runs/older/records && "
        "cp runs/older/metrics/routing.json {OUT}/metrics/routing_older.json"


# The routers of 05f with the other two seeds of the network, after `plane`; 20 minutes.
rule blank_seeds:
    input:
        [RELEASED, TIMES, PLANE, "params/report_blank.yaml"],
        expand("runs/exits_256/seed{seed}/released.pth", seed=(1, 2)),
        code("notebooks/05f_blank.ipynb"),
    output:
        touch("runs/stamps/blank_seeds"),
    shell:
        "for seed in 1 2; do eelib study run notebooks/05f_blank.ipynb --params params/report_blank.yaml "
        "--out runs/blank/seed$seed.ipynb --set reports=runs/blank --set checkpoint=runs/exits_256/seed$seed/released.pth "
        "--set timed={EXITS} && cp runs/blank/metrics/blank.json {OUT}/metrics/blank_seed$seed.json || exit 1; done"


# Four minutes; needs requirements-render.lock and `make furniture`.
rule new_scenes:
    output:
        directory("runs/new_scenes"),
    threads: workflow.cores
    shell:
        JOB + "python -m showroom render --split train --scenes 90 --seed 777 --out {output}"
