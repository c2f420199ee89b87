"""How a graph of an export is opened and run: by onnxruntime, or by OpenVINO where it is installed. No torch."""

import ctypes
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime

from eelib.deploy.manifest import DeploymentError, Graph, read_graph

Run = Callable[[np.ndarray], Sequence[np.ndarray]]  # features to a graph's outputs


def open_graph(folder: Path, graph: Graph, threads: int = 1) -> onnxruntime.InferenceSession:
    """Open a graph whose SHA-256 is the manifest's.

    Raises:
        DeploymentError: the file is missing, is not the one that was exported, or is refused by onnxruntime.
    """
    content = read_graph(folder, graph)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # a warning for each initialiser that an optimisation dropped helps nobody
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises a type of its own for each way of being no graph
        raise refused(folder / graph.file, "onnxruntime", error) from None


def refused(path: Path, runtime: str, error: Exception) -> DeploymentError:
    """What a runtime said of a graph, in one line."""
    return DeploymentError(f"{path}: {runtime} refuses the graph ({' '.join(str(error).split())[:200]})")


def _by_onnxruntime(folder: Path, graph: Graph, threads: int) -> Run:
    session = open_graph(folder, graph, threads)
    return lambda features: session.run(None, {"features": features})


def _by_openvino(folder: Path, graph: Graph, threads: int) -> Run:
    try:
        import openvino
    except ImportError:
        raise DeploymentError("runtime 'openvino' is not installed: pip install 'eelib[openvino]'") from None
    content = read_graph(folder, graph)
    # float means float: on some processors it would take bfloat16
    options = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": "1", "INFERENCE_PRECISION_HINT": "f32"}
    try:
        with _kept_signal_stack():
            core = openvino.Core()
            request = core.compile_model(core.read_model(io.BytesIO(content)), "CPU", options).create_infer_request()
    except Exception as error:  # whatever its front end stumbles over
        raise refused(folder / graph.file, "openvino", error) from None
    names = range(len(graph.outputs))

    def run(features: np.ndarray) -> list[np.ndarray]:
        results = request.infer({0: features})
        return [results[k] for k in names]

    return run


class _SignalStack(ctypes.Structure):
    _fields_ = (("place", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))  # stack_t of Linux


@contextmanager
def _kept_signal_stack() -> Iterator[None]:
    """Give the thread back the stack on which its signals are handled.

    A graph that OpenVINO 2026 compiles puts its own in that place, and frees it with the graph: the next signal that
    Python handles then ends the process.
    """
    if sys.platform != "linux":
        yield
        return
    set_stack, before = ctypes.CDLL(None).sigaltstack, _SignalStack()
    set_stack(None, ctypes.byref(before))
    try:
        yield
    finally:
        set_stack(ctypes.byref(before), None)


RUNNERS = {"onnxruntime": _by_onnxruntime, "openvino": _by_openvino}
