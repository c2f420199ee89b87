"""The targets of :mod:`fuzz_targets` by name, each with what its cases are drawn from; no torch."""

from fuzz_cases import byte_cases, cases, damages, junk, specials, st

tensors = st.one_of(specials, specials, junk)
of_bytes = cases(tensors, damages)
STRATEGIES = {
    "parameter file": cases(),
    "phase parameters": cases(),
    "study parameters": cases(),
    "command line": cases(),
    "annotations": cases(),
    "segmentation": cases(),
    "image ids": cases(),
    "image": byte_cases(),
    "video": byte_cases(),
    "checkpoint": of_bytes,
    "last.pth": of_bytes,
    "manifest of releases": cases(),
    "export manifest": cases(),
    "export folder": cases(junk, damages),
    "router": cases(),
    "exit records": of_bytes,
    "match flags": of_bytes,
    "times": cases(),
    "metrics": cases(),
    "summary of a phase": cases(),
    "notebook": cases(),
    "graph of TensorFlow.js": cases(),
}
