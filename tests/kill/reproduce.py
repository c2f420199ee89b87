"""`make reproduce` killed: Snakemake itself, the command of a rule, and a notebook's kernel, at every write."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from kill.campaign import Tally, broken
from kill.points import Point, points

ROOT = Path(__file__).resolve().parents[2]
# The rule that writes the reports from metrics that are there, and the shortest notebook that reads no picture.
REPORTS, NOTEBOOK = "runs/reports/EXECUTIVE_SUMMARY.md", "runs/reports/metrics/phases.json"
# Which process is killed, of which target.
PROCESSES = (("snakemake", REPORTS), ("eelib", REPORTS), ("eelib", NOTEBOOK), ("ipykernel_launcher", NOTEBOOK))
NOWHERE = Point(0)
LONGEST_S = 600  # of one run; what lives longer after a kill is an orphan


def checkout(folder: Path) -> None:
    """The tracked files, as they are now, without the pictures, which neither target reads."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.split("\0")[:-1]:
        if not name.startswith("data/showroom/") or name.endswith((".json", ".csv")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def run(folder: Path, target: str, program: str = "", point: Point = NOWHERE) -> tuple[int, str, list[bool]]:
    """What `make reproduce` runs, for one target; exit status, what was printed, and the changes of the program.

    Returns when all processes have ended.
    """
    told = folder.parent / "changes"
    told.write_bytes(b"")
    path = os.pathsep.join(map(str, (Path(__file__).parent / "site", Path(__file__).parents[1], folder)))
    programs = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    environment = os.environ | {"PATH": programs, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    if program:
        environment["KILL_AT"] = f"{program}:{point.number}:{int(point.within)}:{folder}:{told}"
    snakemake = Path(sys.executable).with_name("snakemake")
    command = [snakemake, target, "--cores", "1", "--rerun-incomplete", "--quiet", "rules"]
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        printed = process.communicate(timeout=LONGEST_S)[0].decode(errors="replace")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, printed, [bool(value) for value in told.read_bytes()]


def kill_reproduce(scratch: Path, few: int | None = None) -> Tally:
    """Kill every process at each of its points, or at a few of them."""
    tally, folder = Tally("reproduce"), scratch / "checkout"
    checkout(folder)
    tracked = _stated(folder)
    for program, target in PROCESSES:
        _start(folder, target)
        status, printed, opens = run(folder, target, program)
        assert status == 0 and opens, f"{program} {target}: {status}: {printed[-2000:]}"
        finished, every = _results(folder), points(opens)
        for point in every if few is None else every[:: -(-len(every) // few)]:
            _start(folder, target)
            at = f"{program} {point.number}{' within' if point.within else ''}"
            try:
                status, printed, done = run(folder, target, program, point)
            except subprocess.TimeoutExpired:
                tally.unfinished.append(f"{at}: a process lives on")
                continue
            if done and len(done) >= point.number and status == 0:
                continue  # a small file may be written whole within the limit of a torn one
            tally.tried += 1
            half = {name: broken(folder / name) for name in _results(folder) if ".partial" not in name}
            tally.half += [f"{at}: {name}: {problem}" for name, problem in half.items() if problem]
            tally.lost += [f"{at}: {name}" for name in _changed(folder, tracked)]
            status, printed, _ = run(folder, target)
            again = _results(folder)
            if status or again != finished:
                names = [name for name in again.keys() | finished.keys() if again.get(name) != finished.get(name)]
                tally.unfinished.append(f"{at}: {status}: {', '.join(names)} {printed[-500:]}")
        counts = f"{len(tally.half)} half-written, {len(tally.lost)} lost, {len(tally.unfinished)} not resumed"
        print(f"  {program} of {Path(target).name}: so far {tally.tried} points, {counts}", file=sys.stderr, flush=True)
    return tally


def _start(folder: Path, target: str) -> None:
    """A checkout in which everything is made but the target."""
    for name in ("runs", ".snakemake"):
        shutil.rmtree(folder / name, ignore_errors=True)
    made = shutil.ignore_patterns(Path(target).name, "executed")
    shutil.copytree(folder / "reports", folder / "runs/reports", copy_function=shutil.copyfile, ignore=made)
    now = time.time()  # one time for all, so that none is out of date
    for path in (folder / "runs/reports").rglob("*"):
        os.utime(path, (now, now))


def _results(folder: Path) -> dict[str, bytes]:
    """Files of runs/reports; of an executed notebook, which holds times, that it is there."""
    files = {str(path.relative_to(folder)): path for path in (folder / "runs/reports").rglob("*") if path.is_file()}
    return {name: b"" if path.suffix == ".ipynb" else path.read_bytes() for name, path in files.items()}


def _stated(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of each file."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def _changed(folder: Path, tracked: dict) -> list[str]:
    return [
        name for name, state in tracked.items()
        if not (path := folder / name).exists() or (path.stat().st_size, path.stat().st_mtime_ns) != state
    ]  # fmt: skip
