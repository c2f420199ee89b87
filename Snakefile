# Rebuilds what changed: `make reproduce`. What there is to make stands in studies/stages.yaml, a rule a row. Everything
# is written to runs/reports; no output of a rule is a tracked file. What `all` does not make, because it takes hours or
# belongs to a seed that was not asked for, is copied there from reports/, unless runs/reports has a newer one. So the
# rules read runs/reports alone, with one exception: routing rests on the committed times of the exits, as long as they
# are of the released weights, so that its results can be compared.
import json
import shutil
from glob import glob
from pathlib import Path

import yaml

from studies.rebuild import alone, code, committed, forget, parameters

ALIVE = alone("runs/alive", ".snakemake/locks")
OUT = "runs/reports"
START = "checkpoints/phases_start.pth"  # the baseline of version 0.1, whose trunk the recorded phases start from
# With setpriv a job dies with Snakemake and its kernel follows, so that no orphan writes beside the next run.
EXEC = "exec " + ("setpriv --pdeathsig KILL " if shutil.which("setpriv") else "")

measured = json.loads(Path("reports/metrics/exits.json").read_text())["checkpoint_sha256"]
same = measured == json.loads(Path("checkpoints/manifest.json").read_text())["exits_256.pth"]["sha256"]
TIMES = f"{'reports' if same else OUT}/metrics/exits.json"
# --config profile=full trains the phases' trunk, on all images; --config seeds=0,1,2 repeats each phase. The serious
# profile, more steps with a frozen trunk, is a target of its own, since its results stand beside these.
FULL = "model.train_trunk=true optim.trunk_lr_factor=0.1 data.limit=null data.val_limit=null"
SEEDS = str(config.get("seeds", "0")).split(",")
PHASES = sorted(path.stem for path in Path("params").glob("phase_1_*.yaml"))
RUNS = {f"{phase}_seed{seed}": (phase, seed) for phase in PHASES for seed in SEEDS}


def made(words):
    """Files of runs/reports: a table where the word says so, or metrics."""
    return [f"{OUT}/tables/{word}" if word.endswith(".csv") else f"{OUT}/metrics/{word}.json" for word in words.split()]


KEPT = sorted(path.stem for path in Path("reports/metrics/phases").glob("*.json") if path.stem not in RUNS)
committed([*(f"phases/{name}/*.csv" for name in KEPT), "phases/*/*/*.csv"])  # of other seeds, and of the profiles
STUDIES = "ablation causal generalisation learning_curve routing_older blank_seed1 blank_seed2 int8_elsewhere"
WEIGHTS = [f"checkpoints/{name}" for name in ("baseline.pth", "exits_256.pth", "exits_320.pth", "manifest.json")]
GROUPS = {
    "released": WEIGHTS + glob("checkpoints/matches/*"),
    "times": [TIMES],
    "long": committed(f"metrics/{name}.json" for name in STUDIES.split()),
    "summaries": made(" ".join(f"phases/{name}" for name in RUNS))
    + committed([*(f"metrics/phases/{name}.json" for name in KEPT), "metrics/phases/*/*.json"]),
    "reports": [f"{OUT}/{path.stem}" for path in sorted(Path("studies/report/templates").glob("*.j2"))],
}


def files(words):
    """Files that words stand for: a group, a pattern, a parameter file with its bases, a path, or else :func:`made`."""
    for word in words.split():
        if word in GROUPS:
            yield from GROUPS[word]
        elif "*" in word:
            yield from glob(word, recursive=True)
        elif "/" in word:
            yield from parameters(word) if word.startswith("params/") else [word]
        else:
            yield from made(word)


def as_command(name, row):
    """The row of a notebook as that of a command; records, and its own caches, are deleted where the code is newer."""
    source, file = f"notebooks/{row['notebook']}.ipynb", row.get("params", f"params/report_{name}.yaml")
    log, there = row.get("log", f"{OUT}/executed/{row['notebook']}.ipynb"), [file] if Path(file).exists() else []
    options = [f"--params {file}" for file in there] + [f"--out {log}", f"--set reports={OUT}"]
    options += [f"--set {setting}" for setting in row.get("set", "").split()]
    behind = [*code(source), *(path for file in there for path in parameters(file))]
    clean = forget(row.get("caches", ()), behind) + forget(["runs/records/*"], code())
    reads = " ".join([source, "data/showroom/*.json", *there, row.get("reads", "")])
    command = f"{clean}{EXEC}eelib study run {source} {' '.join(options)}"
    return row | {"shell": command, "code": source, "reads": reads, "log": log}


ROWS = yaml.safe_load(Path("studies/stages.yaml").read_text().replace("{TIMES}", TIMES).replace("{EXEC}", EXEC))
for name, (phase, seed) in RUNS.items():
    settings = f"seed={seed} {FULL if config.get('profile') == 'full' else ''}"
    ROWS[name] = {"notebook": "05_routing", "makes": f"phases/{name}", "reads": START, "set": settings}
    ROWS[name] |= {"params": f"params/{phase}.yaml", "caches": [f"runs/{phase}/seed{seed}/identity.json"]}
    # of the executed copies one is published, the others are its likes; a failed one keeps its traceback
    ROWS[name]["log"] = f"{OUT if name == 'phase_1_4_seed0' else 'runs'}/executed/05_routing_{name}.ipynb"
for profile, phases in yaml.safe_load(Path("params/profiles.yaml").read_text()).items():
    for phase in phases:  # one training at more steps, or with one change: `snakemake --cores 1 serious clamped`
        command = f"phases train params/{phase}.yaml --profile {profile} --reports {OUT}"
        reads = f"released params/{phase}.yaml params/profiles.yaml {START}"
        ROWS[f"{profile}_{phase}"] = {"eelib": command, "code": "studies/phases/scorecard.py", "reads": reads}
    ROWS[profile] = {"shell": "true", "reads": " ".join(f"runs/stamps/{profile}_{phase}" for phase in phases)}


onerror:
    # Snakemake makes an empty log for a job that was killed before it wrote one; here a log is a notebook
    shell(f"mkdir -p {OUT}/executed && find {OUT}/executed -type f -empty -delete")


rule all:
    input:
        [file for row in ROWS.values() if "notebook" in row for file in made(row["makes"])],
        GROUPS["reports"],


for name, row in ROWS.items():
    row = as_command(name, row) if "notebook" in row else row
    makes = GROUPS.get(row.get("makes")) or made(row.get("makes", "")) or touch(f"runs/stamps/{name}")

    rule:
        name:
            name
        input:
            code(row["code"]) if "code" in row else [],
            list(files(row.get("reads", ""))),
        output:
            directory(row["folder"]) if "folder" in row else makes,
        log:
            row.get("log", []),
        params:
            command=row.get("shell") or f"{EXEC}eelib {row['eelib']}",
        threads: workflow.cores if row.get("alone") else 1
        shell:
            "{params.command}"
