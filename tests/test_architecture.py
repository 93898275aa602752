"""The house keeps its shape: imports point one way, files and functions stay short, the path to the gradient too."""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import proximo
from proximo.algorithms import ALGORITHMS
from proximo.algorithms.language import LANGUAGE
from proximo.run import session
from proximo.run.config import resolved
from proximo.run.spaces import space_to_json
from proximo.sources.backends import lanes_for

PACKAGE = Path(proximo.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# A room may import from the rooms that stand before it in this order, and from itself.
ORDER = [
    ("errors", "kernels", "replay", "threads"),
    ("batch", "observations", "checks", "compiler", "decoder", "ranks", "rewards"),
    ("policy", "reduce", "coefficients", "state"),
    ("advantages", "drift", "groups", "objectives", "plasticity"),
    ("critics", "preferences", "reference", "sequences"),
    ("models", "updaters"),
    ("sources",),
    ("algorithms", "presets"),
    ("run",),
    ("cli_language", "cli_train", "language"),
    ("cli",),
]
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("proximo"):
            names = [f"{node.module}.{a.name}" for a in node.names] if node.module == "proximo" else [node.module]
            found += names
        elif isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.startswith("proximo")]
    return found


def test_imports_point_one_way() -> None:
    for path in FILES:
        mine = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if mine in ("__init__", "__main__"):
            continue
        for imported in map(room, imports(path)):
            assert imported == mine or LEVEL[imported] < LEVEL[mine], f"{path.name} ({mine}) imports {imported}"


def test_files_and_functions_are_short() -> None:
    for path in FILES:
        text = path.read_text()
        assert len(text.splitlines()) <= 300, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 50, f"{path.name}: {node.name}"


def test_an_algorithm_fits_a_screen() -> None:
    for path in (PACKAGE / "algorithms").rglob("*.py"):
        assert len(path.read_text().splitlines()) < 80, path


def test_what_all_algorithms_share_knows_none_of_them_by_name() -> None:
    """Not as a word, a name or an import: neither the loop, nor what bounds its updates, nor the updaters."""
    learners = {**ALGORITHMS, **LANGUAGE}
    theirs = {*learners, *(cls.__name__ for cls in learners.values())} - {"natural", "reward"}  # a step's, a column's
    shared = [PACKAGE / "run" / "loop.py", PACKAGE / "run" / "ledger.py", *(PACKAGE / "updaters").rglob("*.py")]
    for path in shared:
        assert not [name for name in imports(path) if name.startswith("proximo.algorithms.")], path
        for node in ast.walk(ast.parse(path.read_text())):
            words = {getattr(node, field, None) for field in ("id", "attr", "name", "arg", "value")}
            assert not {word for word in words if isinstance(word, str)} & theirs, f"{path.name}: {words}"


def test_every_public_thing_says_what_it_is() -> None:
    for path in FILES:
        tree = ast.parse(path.read_text())
        if path.name != "__init__.py":
            assert ast.get_docstring(tree), path
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                assert ast.get_docstring(node), f"{path.name}: {node.name}"


# What a reader opens between env.step and the gradient, besides batch.py, the vocabulary they all share.
PATH = {
    "sources/envs.py",
    "sources/acting.py",
    "algorithms/ppo.py",
    "advantages.py",
    "updaters/sgd.py",
    "models/actor_critic.py",
    "models/distributions/discrete.py",
    "objectives.py",
}
BESIDE = {"batch.py", "reduce.py", "sources/episodes.py", "coefficients.py"}  # statistics and the learning rate
BESIDE |= {"sources/buffers.py", "observations.py"}  # how observations are kept
BESIDE |= {"updaters/adam.py", "updaters/optimizer.py", "algorithms/config.py"}
BESIDE |= {"compiler/__init__.py", "updaters/graph.py", "ranks.py"}  # asked, and off; asked, and alone
BESIDE |= {"models/packed.py"}  # told where an image network may keep what it makes of its weights


def test_from_env_step_to_the_gradient_is_eight_files_and_sixty_lines_each() -> None:
    config = resolved("CartPole-v1", "ppo", "none", dict(envs=2, horizon=8, epochs=1, minibatches=1, device="cpu"))
    lanes = lanes_for("CartPole-v1", 2, "sync")
    spaces = {"observation": space_to_json(lanes.observation_space), "action": space_to_json(lanes.action_space)}
    run = session.build("CartPole-v1", replace(config, spaces=spaces), lanes)
    policy, algorithm, source = run.policy, run.algorithm, run.source
    source.restart(0)
    lines: dict[str, set[int]] = defaultdict(set)

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        path = Path(frame.f_code.co_filename)
        if PACKAGE in path.parents and event == "line":
            lines[path.relative_to(PACKAGE).as_posix()].add(frame.f_lineno)
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        algorithm.step(source.collect(policy), 0.0)
    finally:
        sys.settrace(previous)
        source.close()
    assert set(lines) - BESIDE == PATH
    assert len(PATH) == 8
    assert max(len(passed) for passed in lines.values()) <= 60, {k: len(v) for k, v in lines.items()}
