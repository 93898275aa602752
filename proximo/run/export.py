"""Agents as files for other runtimes: ONNX, and torch.export's programs."""

from __future__ import annotations

import copy
import importlib.util
import io
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from proximo.errors import ConfigError, ExportError, MissingExtra, ProximoError, install
from proximo.models.own import MakeCore, MakeEncoder, Own
from proximo.run.agent import Agent
from proximo.run.agreement import Runtime, disagreement, observations, walks
from proximo.run.files import replace_durably
from proximo.run.loading import load_agent
from proximo.run.program import Program, ours

TOLERANCE = 1e-5
NEEDED = ("onnx", "onnxscript", "onnxruntime")


class Port(NamedTuple):
    """An input or an output of a program."""

    name: str
    dtype: str
    shape: tuple[int, ...]  # without the first dimension, which is any number of rows


class Exported(NamedTuple):
    """What was written."""

    files: dict[Path, float]  # and the greatest difference from the agent, see `agreement.disagreement`
    inputs: list[Port]
    outputs: list[Port]
    steps: int  # that were compared

    def summary(self) -> list[str]:
        """It in lines."""
        ports = [("input", port) for port in self.inputs] + [("output", port) for port in self.outputs]
        width = max(len(port.name) for _, port in ports)
        lines = [
            f"  {kind:6}  {port.name:{width}}  {port.dtype:7} [{', '.join(('N', *map(str, port.shape)))}]"
            for kind, port in ports
        ]
        how = f"acts as the agent does in {self.steps} steps"
        checked = [f"{file}: {how}, greatest difference {far:.1g}" for file, far in self.files.items()]
        return [*checked, *lines]


def export_run(
    path: str | Path,
    onnx: str | Path | None = None,
    torch: str | Path | None = None,
    say: Callable[[str], None] = lambda text: None,
    *,
    encoder: MakeEncoder | None = None,
    core: MakeCore | None = None,
) -> Exported:
    """Write the most likely actions of a run's newest good checkpoint (or of one checkpoint) as files that stand alone.

    As `export_agent`; `encoder` and `core` are those that it was trained with, where these came from you. Raises what
    `load` raises, too.
    """
    return export_agent(load_agent(path, say, Own(encoder, core)), onnx, torch)


def export_agent(agent: Agent, onnx: str | Path | None = None, torch: str | Path | None = None) -> Exported:
    """Write an agent's most likely actions as files that stand alone.

    `onnx` is an ONNX file, `torch` one of torch.export (.pt2): who loads such a file must trust it, and none is ever
    loaded here. What goes in and comes out, [N, ...] for any N, is that of `program.Program`. Before anything is
    written it is held against the agent's own actions: ExportError if it is further off than 10⁻⁵
    (`agreement.disagreement`), or cannot be made. Raises ConfigError for a file that is there already or cannot be
    written, MissingExtra where ONNX's packages are not installed.
    """
    wanted = {Path(file): make for file, make in ((onnx, as_onnx), (torch, as_torch)) if file is not None}
    if not wanted or (None not in (onnx, torch) and len(wanted) < 2):
        raise ConfigError("which file to write? for example: --onnx agent.onnx, or --torch agent.pt2, or both")
    for file in wanted:
        if os.path.lexists(file):
            raise ConfigError(f"{file} is there already: remove it, or name another file")
    if missing := [name for name in NEEDED if onnx is not None and importlib.util.find_spec(name) is None]:
        raise MissingExtra(f"writing ONNX needs {', '.join(missing)}: {install('export')}")
    if onnx is not None and any(getattr(module, "brief", False) for module in ours(agent).modules()):
        raise ExportError("ONNX Runtime has no bfloat16 convolutions: --torch writes a program of torch.export")
    agent = copy.deepcopy(agent)  # what it remembers stays
    ours(agent).cpu()
    program = Program(agent)
    inputs, outputs, traced = trace(agent, program)
    contents, files = dict[Path, bytes](), dict[Path, float]()
    for file, make in wanted.items():
        contents[file], runtime = make(traced, inputs, list(outputs))
        files[file] = disagreement(agent, program, runtime)
        if not files[file] <= TOLERANCE:
            raise ExportError(f"{file} is not written: it would differ from the agent by {files[file]:.1g}")
    for file, content in contents.items():
        write(file, content)
    compared = sum(lanes * steps for lanes, steps in walks(agent))
    return Exported(files, ports(inputs), ports(outputs), compared)


def trace(agent: Agent, program: Program) -> tuple[dict[str, Tensor], dict[str, Tensor], Any]:
    """Inputs of two rows, what comes of them, and the program as operations on any number of rows."""
    rows, _ = agent.rows(observations(agent, 2, np.random.default_rng(0)))
    inputs = program.inputs(rows, program.initial(2), torch.ones(2, dtype=torch.bool))
    sizes = {name: {0: torch.export.Dim("rows", min=1)} for name in inputs}
    with quiet("torch.export"), torch.no_grad():
        traced = torch.export.export(program, (inputs,), dynamic_shapes={"inputs": sizes}, strict=False)
        return inputs, program(inputs), traced


def as_onnx(traced: Any, inputs: dict[str, Tensor], outputs: list[str]) -> tuple[bytes, Runtime]:
    """An ONNX file, and ONNX Runtime's view of it."""
    with quiet("torch.onnx"):
        import onnxruntime

        names: dict[str, Any] = dict(input_names=list(inputs), output_names=outputs)
        made = torch.onnx.export(traced, (inputs,), dynamo=True, verbose=False, **names)
        assert made is not None
        model = made.model_proto
        call_rows_n(model.graph)
        content = model.SerializeToString()
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, 1
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def runtime(given: dict[str, Any]) -> dict[str, Any]:
        with quiet("ONNX Runtime"):
            return dict(zip(outputs, session.run(outputs, given), strict=True))

    return content, runtime


def call_rows_n(graph: Any) -> None:
    """Name the number of rows N, also where a size is a multiple of it: two sizes of one name must be the same."""
    sizes = [size for value in graph.input for size in value.type.tensor_type.shape.dim if size.dim_param]
    symbol = re.compile(rf"\b({'|'.join(sorted({re.escape(size.dim_param) for size in sizes}))})\b")
    for value in (*graph.input, *graph.output, *graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = symbol.sub("N", size.dim_param)


def as_torch(traced: Any, inputs: dict[str, Tensor], outputs: list[str]) -> tuple[bytes, Runtime]:
    """A file of torch.export, and the program that is in it."""
    file, module = io.BytesIO(), traced.module()
    with quiet("torch.export"):
        torch.export.save(traced, file)

    def runtime(given: dict[str, Any]) -> dict[str, Any]:
        with torch.no_grad():
            made = module({name: torch.from_numpy(array) for name, array in given.items()})
        return {name: tensor.numpy() for name, tensor in made.items()}

    return file.getvalue(), runtime


def ports(tensors: dict[str, Tensor]) -> list[Port]:
    return [Port(name, str(x.dtype).removeprefix("torch."), tuple(x.shape[1:])) for name, x in tensors.items()]


def write(file: Path, content: bytes) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_durably(file, content)
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror}") from None


@contextmanager
def quiet(what: str) -> Iterator[None]:
    """Without the advice that exporters print; what they raise, of many kinds, as an ExportError."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ProximoError:
        raise
    except Exception as error:
        raise ExportError(f"{what} cannot export this policy: {type(error).__name__}: {error}") from error
    finally:
        logging.disable(before)
