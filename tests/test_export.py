"""Exported files do what the agent does: in every space, with masks, normaliser and memory, for any number of rows."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Text, Tuple

import proximo
from proximo.batch import leaves_of, tree_map
from proximo.errors import ConfigError, ExportError
from proximo.models.actor_critic import OURS, ActorCritic
from proximo.models.network import Network
from proximo.models.normalize import Normalizer, RunningMoments
from proximo.models.own import Own
from proximo.observations import space_map
from proximo.run import export
from proximo.run.agent import Agent
from proximo.run.agreement import disagreement, observations, walks
from proximo.run.export import export_agent
from proximo.run.program import Program, named
from tests.conftest import Command, Complaint

VECTOR = Box(-np.inf, np.inf, (5,), np.float32)
HALF = Box(np.array([[-1, 0], [-5, 3]], np.float32), np.array([[1, np.inf], [-2, 3]], np.float32), dtype=np.float32)
SEEN = Dict(
    picture=Box(0, 255, (12, 12, 3), np.uint8),
    inner=Tuple([Text(4, charset="cab"), Discrete(3, start=-1), MultiBinary(2)]),
    number=Box(-2, 2, (2, 2), np.float64),
)
# network, observation space, action space
CASES: dict[str, tuple[dict[str, Any], gym.Space, gym.Space]] = {
    "one choice": (dict(layer_norm=True, normalize_observation=True), VECTOR, Discrete(4, start=2)),
    "masked choices": ({}, Dict(seen=VECTOR, action_mask=MultiBinary(7)), MultiDiscrete([3, 4], start=[1, -2])),
    "a mask of parts": (
        {},
        Dict(seen=VECTOR, action_mask=MultiBinary(7)),
        Dict(a=Box(-1, 1, (1,)), b=Tuple([MultiDiscrete([3, 2]), MultiBinary(1)]), c=Discrete(2, start=1)),
    ),
    "stack": (dict(frame_stack=3, normalize_observation=True), VECTOR, Discrete(3)),
    "a stack of a tree with a mask": (
        dict(frame_stack=3),
        Dict(seen=VECTOR, picture=Box(0, 255, (12, 12, 1), np.uint8), action_mask=MultiBinary(3)),
        Discrete(3),
    ),
    "a stack of a mask": (
        dict(frame_stack=2, hidden=(64, 64)),
        Dict(seen=Box(-1, 1, (4,)), action_mask=MultiBinary(7)),
        MultiDiscrete([3, 4]),
    ),
    "box": (dict(normalize_observation=True, activation="relu"), VECTOR, HALF),
    "squashed, lstm": (dict(distribution="squashed", memory="lstm", state_std=True), VECTOR, Box(-3, 1, (2,))),
    "everything": (
        dict(distribution="beta", memory="transformer", memory_window=4, trunk="separate", normalize_observation=True),
        SEEN,
        Dict(side=Discrete(2), inner=Tuple([Box(-9, 9, (2,), np.int8), MultiBinary((2, 2))]), push=Box(0, 1, (1,))),
    ),
    "gru": (dict(memory="gru"), Dict(n=Discrete(600, start=5)), Tuple([Box(-2, 2, (1,), np.float64), Discrete(3)])),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def agent_of(
    network: dict[str, Any], observation: gym.Space, action: gym.Space, gain: float = 1.0, own: Own = OURS
) -> Agent:
    """An agent that does different things in different places, whose normalisers have seen something."""
    torch.manual_seed(0)
    policy = ActorCritic(observation, action, Network(**{"hidden": (8,), "memory_size": 8, **network}), own)
    with torch.no_grad():
        for parameter in policy.actor.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, gain)
    for module in policy.modules():
        if isinstance(module, RunningMoments):
            rows = 30 + 7 * torch.randn(100, len(module.mean)) * torch.arange(1, 1 + len(module.mean))
            module.update(rows.clamp(-2, 2) if observation is SEEN else rows)
    return Agent(policy, observation, action)


def flat(space: gym.Space, kind: str, tree: Any) -> dict[str, Any]:
    """Leaves by the names that are promised: kind_key_index…"""
    names = list[str]()
    space_map(lambda path, leaf: names.append("_".join(map(str, (kind, *path)))), space)
    return dict(zip(names, leaves_of(tree), strict=True))


def by_hand(agent: Agent, seen: Any) -> dict[str, Any]:
    """Observations as inputs: texts as places in their sorted characters, numbers as float32, choices as they are."""
    inputs = flat(agent.observation_space, "observation", seen)
    for name, value in inputs.items():
        if isinstance(value, list):
            codes = [["abc".index(character) + 1 for character in text] for text in value]
            inputs[name] = np.array([row + [0] * (4 - len(row)) for row in codes], np.int64)
        elif value.dtype != np.uint8 and (value.dtype != np.int64):
            inputs[name] = value.astype(np.float32)
    return inputs


@pytest.mark.parametrize("name", CASES)
def test_both_files_act_as_the_agent(name: str, tmp_path: Path) -> None:
    agent = agent_of(*CASES[name])
    written = export_agent(agent, tmp_path / "a.onnx", tmp_path / "a.pt2")
    assert max(written.files.values()) <= 1e-5
    assert {path.name for path in tmp_path.iterdir()} == {"a.onnx", "a.pt2"}
    onnx.checker.check_model(str(tmp_path / "a.onnx"), full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx", options)
    loaded = torch.export.load(tmp_path / "a.pt2").module()

    def torches(inputs: dict[str, Any]) -> dict[str, Any]:
        with torch.no_grad():
            return tree_map(lambda x: x.numpy(), loaded(tree_map(torch.as_tensor, inputs)))

    ports = [(port.name, list(port.shape)) for port in session.get_inputs()]
    assert ports == [(port.name, ["N", *port.shape]) for port in written.inputs]
    outputs = [port.name for port in session.get_outputs()]
    assert outputs == [port.name for port in written.outputs]
    for call in (lambda inputs: dict(zip(outputs, session.run(None, inputs), strict=True)), torches):
        for lanes in (1, 7):
            follow(agent, call, lanes)


def follow(agent: Agent, call: Callable[[dict[str, Any]], dict[str, Any]], lanes: int) -> None:
    """Twelve steps of episodes that begin at random, the memory passed on by hand from zeros."""
    rng, acted = np.random.default_rng(7), list[Any]()
    agent.reset()
    own = leaves_of(agent.policy.initial(lanes))
    own = own[: len(own) // 2] if agent.policy.critic_trunk is not None else own
    memory = {f"memory_{i}": np.zeros_like(x.numpy()) for i, x in enumerate(own)}
    for _ in range(12):
        seen, start = observations(agent, lanes, rng), rng.random(lanes) < 0.2
        made = call({**by_hand(agent, seen), **memory, **({"start": start} if memory else {})})
        acted.append(agent.act(seen, start=start))
        for name, wanted in flat(agent.action_space, "action", acted[-1]).items():
            assert (made[name].dtype, made[name].shape) == (wanted.dtype, wanted.shape)
            np.testing.assert_allclose(made[name], wanted, rtol=1e-5, atol=1e-5)
        memory = {name: made[f"next_{name}"] for name in memory}
    for column in zip(*map(leaves_of, acted), strict=True):
        assert lanes == 1 or np.ptp(np.stack(column)) > 0, "nothing is done differently"


UNITS: list[gym.Space] = [
    *(Box(-7, 100, (3, 2), kind) for kind in (np.int8, np.int16, np.int64, np.float16, np.float32, np.float64)),
    *(Box(0, 200, (5,), kind) for kind in (np.uint8, np.uint16, np.uint32)),
    *(Box(-(2**31), 2**31 - 1, (2,), np.int32), HALF, Box(-np.inf, np.inf, (), np.float32)),
    *(Box(0, 3.4e38, (2,), np.float32), Box(-1e-6, 1e-6, (4,), np.float32), Box(2, 2, (1,), np.float32)),
    *(Discrete(5, start=-2), Discrete(5, dtype=np.int32), MultiDiscrete([[2, 3], [4, 5]], start=[[1, 0], [0, -1]])),
    *(MultiDiscrete([3, 3], dtype=np.int8), MultiBinary(3), MultiBinary([2, 2])),
    Dict({"b": Tuple([Discrete(2), Box(-1, 1, (1,))]), "a b": MultiBinary(1)}),
]


def runtime(program: Program) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The program in torch, as it is."""
    return lambda given: tree_map(lambda x: x.detach().numpy(), program(tree_map(torch.from_numpy, given)))


@pytest.mark.parametrize("space", UNITS, ids=str)
def test_actions_are_in_the_environments_units(space: gym.Space) -> None:
    kinds = ["gaussian", "squashed", "beta"] if isinstance(space, Box) and space.is_bounded() else ["gaussian"]
    for kind in kinds:
        agent = agent_of(dict(distribution=kind), VECTOR, space, gain=2.0)
        program, seen = Program(agent), observations(agent, 200, np.random.default_rng(0))
        made, own = runtime(program)({"observation": seen.astype(np.float32)}), leaves_of(agent.act(seen))
        for other, wanted in zip(made.values(), own, strict=True):
            assert (other.dtype, other.shape) == (wanted.dtype, wanted.shape)
            reach = np.float64(space.high) / 2 - space.low / 2 if isinstance(space, Box) and space.is_bounded() else 1
            off = abs(other.astype(float) - wanted) > 1e-6 * reach + (other.dtype == np.float16) * abs(wanted) / 1000
            assert not off.any(), (other[off], wanted[off])
        assert disagreement(agent, program, runtime(program)) <= 1e-6


def spoiled(f: Callable[[str, np.ndarray], Any], program: Program) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The program with some of what it puts out changed."""
    return lambda given: {name: f(name, x) for name, x in runtime(program)(given).items()}


SPOILED: dict[str, tuple[str, Callable[[str, np.ndarray], Any]]] = {
    "a number": ("box", lambda name, x: np.clip(x + np.float32(4e-5), HALF.low, HALF.high)),
    "no number": ("box", lambda name, x: x * np.nan),
    "another precision": ("box", lambda name, x: x.astype(np.float64)),
    "another shape": ("box", lambda name, x: x[:, None]),
    "out of bounds": ("box", lambda name, x: x + 1),
    "cut": ("everything", lambda name, x: np.where(x > 0, x - 1, x) if name == "action_inner_0" else x),
    "another choice": ("one choice", lambda name, x: 2 + (x - 1) % 4),
    "no choice": ("one choice", lambda name, x: x + 4),
    "a choice of several": ("masked choices", lambda name, x: np.stack([x[:, 0], -2 + (x[:, 1] + 3) % 4], 1)),
    "switches": ("everything", lambda name, x: 1 - x if name == "action_inner_1" else x),
    "memory": ("gru", lambda name, x: x * np.float32(1.0001) if "memory" in name else x),
    "no memory": ("everything", lambda name, x: np.zeros_like(x) if "memory" in name else x),
}


@pytest.mark.parametrize("name", SPOILED)
def test_what_is_not_the_same_is_seen(name: str) -> None:
    case, f = SPOILED[name]
    agent = agent_of(*CASES[case])
    program = Program(agent)
    assert disagreement(agent, program, runtime(program)) <= 1e-6
    assert not disagreement(agent, program, spoiled(f, program)) <= 1e-5


def test_the_normaliser_counts() -> None:
    agent = agent_of(*CASES["box"])
    program = Program(agent)
    program.policy.trunk.encoder.moments.mean.add_(0.1)
    assert disagreement(agent, program, runtime(program)) > 1e-5


def test_the_walk_goes_on_when_stack_and_window_are_full() -> None:
    """What errs only where nothing of the beginning is seen any more is found, by a walk that takes no minute."""
    for network in (dict(memory="transformer", memory_window=12), dict(frame_stack=9)):
        agent = agent_of(network, VECTOR, HALF)
        program = Program(agent)

        def late(given: dict[str, np.ndarray], program: Program = program) -> dict[str, np.ndarray]:
            made, known = runtime(program)(given), given["memory_1"]
            full = known.all(1) if known.ndim == 2 else known == 8
            made["action"] = np.where(full[:, None, None], HALF.low, made["action"])
            return made

        assert disagreement(agent, program, runtime(program)) <= 1e-6
        assert disagreement(agent, program, late) > 1e-3
        assert sum(lanes * steps for lanes, steps in walks(agent)) < 160


class Encoder(torch.nn.Module):
    """All leaves in a row, scaled by statistics of its own over all of them, through a layer."""

    def __init__(self, space: gym.Space) -> None:
        super().__init__()
        self.scale, self.layer = Normalizer(5), torch.nn.Linear(5, 6)

    def forward(self, observation: Any) -> torch.Tensor:
        return self.layer(self.scale(torch.cat(leaves_of(observation), -1))).tanh()


class Core(torch.nn.Module):
    """A gated recurrent unit."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.features, self.cell = 7, torch.nn.GRUCell(inputs, 7)

    def initial(self, lanes: int) -> tuple[torch.Tensor, ...]:
        return (self.cell.weight_hh.new_zeros(lanes, 7),)

    def forward(self, inputs: torch.Tensor, state: Any, start: torch.Tensor) -> tuple[torch.Tensor, Any]:
        (hidden,), outputs = state, []
        for row, begins in zip(inputs, start, strict=True):
            hidden = self.cell(row, hidden * ~begins.unsqueeze(-1))
            outputs.append(hidden)
        return torch.stack(outputs), (hidden,)


PARTS = Dict(a=Box(-np.inf, np.inf, (2,), np.float32), b=Box(-np.inf, np.inf, (3,), np.float32))


@pytest.mark.parametrize(
    ("own", "seen", "network", "file"),
    [
        (Own(Encoder), PARTS, dict(normalize_observation=True), "onnx"),
        (Own(Encoder), VECTOR, dict(memory="gru"), "torch"),
        (Own(core=Core), PARTS, dict(normalize_observation=True), "onnx"),
        (Own(Encoder, Core), VECTOR, dict(normalize_observation=True), "torch"),
    ],
)
def test_own_parts_are_exported(own: Own, seen: gym.Space, network: dict[str, Any], file: str, tmp_path: Path) -> None:
    agent = agent_of(network, seen, HALF, own=own)
    files = {"torch": tmp_path / "a.pt2"} | ({"onnx": tmp_path / "a.onnx"} if file == "onnx" else {})
    written = export_agent(agent, **files)
    assert max(written.files.values()) <= 1e-5
    loaded = torch.export.load(tmp_path / "a.pt2").module()

    def call(inputs: dict[str, Any]) -> dict[str, Any]:
        with torch.no_grad():
            return tree_map(lambda x: x.numpy(), loaded(tree_map(torch.as_tensor, inputs)))

    follow(agent, call, 7)


def test_observations_are_drawn_around_what_was_seen_of_their_own_leaf() -> None:
    """Not around the statistics of another leaf, or those that a user's encoder keeps of something else."""
    for normalize in (False, True):
        agent = agent_of(dict(normalize_observation=normalize), PARTS, HALF, own=Own(Encoder))
        if normalize:
            for i, normalizer in enumerate(agent.policy.trunk.encoder.scale.boxes):
                normalizer.moments.mean.fill_(100 * (i + 1))
                normalizer.moments.variance.fill_(1)
        drawn = observations(agent, 500, np.random.default_rng(0))
        for i, key in enumerate("ab"):
            assert np.median(drawn[key]) == pytest.approx(100 * (i + 1) if normalize else 0, abs=0.5)


def test_choices_and_roundings_that_are_as_good_are_the_same() -> None:
    """All choices alike, and an action between two whole numbers: either is what the agent would do."""
    space = Tuple([Discrete(3), MultiDiscrete([2, 2]), Box(0, 3, (2,), np.int64)])
    agent = agent_of({}, VECTOR, space, gain=0.0)
    program = Program(agent)
    others = {"action_0": 2, "action_1": 1, "action_2": 1}
    own = agent.act(np.zeros(5))
    assert [x.tolist() for x in own] == [0, [0, 0], [2, 2]]
    assert disagreement(agent, program, spoiled(lambda name, x: np.full_like(x, others[name]), program)) == 0
    assert disagreement(agent, program, spoiled(lambda name, x: x * 0, program)) > 0.1


def test_a_file_has_no_critic(tmp_path: Path) -> None:
    """Nor does exporting change the agent, or what it remembers."""
    agent = agent_of(*CASES["squashed, lstm"])
    first = agent.act(np.ones(5))
    kept = copy.deepcopy(agent)
    export_agent(agent, torch=tmp_path / "a.pt2")
    assert not [name for name in torch.export.load(tmp_path / "a.pt2").state_dict if "critic" in name]
    assert np.array_equal(agent.act(np.ones(5)), kept.act(np.ones(5)))
    assert not np.array_equal(agent.act(np.ones(5)), first)


def test_names_are_identifiers_and_differ() -> None:
    paths = [("a b",), ("a_b",), ("a", "b"), ("a_b_",), ("été", 0), ()]
    names = list(named("action", paths).values())
    assert names == ["action_a_b", "action_a_b_", "action_a_b__", "action_a_b___", "action__t__0", "action"]


def test_the_command_says_what_it_wrote(command: Command, trained: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "deep" / "er" / "cart.onnx", tmp_path / "cart.pt2"
    done = command("export", trained, "--onnx", first, "--torch", second)
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [
        f"{first}: acts as the agent does in 132 steps, greatest difference 0",
        f"{second}: acts as the agent does in 132 steps, greatest difference 0",
        "  input   observation  float32 [N, 4]",
        "  output  action       int64   [N]",
    ]
    agent, session = proximo.load(trained), onnxruntime.InferenceSession(first)
    seen = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    assert np.array_equal(session.run(None, {"observation": seen})[0], agent.act(seen))


def test_mistakes_are_one_line_and_leave_nothing(
    complaint: Complaint, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, there, plain = tmp_path / "new" / "a.pt2", tmp_path / "there.onnx", tmp_path / "plain"
    there.write_bytes(b"mine")
    plain.write_bytes(b"")
    assert "which file to write?" in complaint("export", run)
    assert "which file to write?" in complaint("export", run, "--onnx", file, "--torch", file)
    assert f"{there} is there already" in complaint("export", run, "--onnx", there, "--torch", file)
    assert f"{tmp_path} is there already" in complaint("export", run, "--torch", tmp_path)
    assert "cannot write" in complaint("export", run, "--torch", plain / "a.pt2")
    assert str(tmp_path / "nowhere") in complaint("export", tmp_path / "nowhere", "--torch", file)
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    assert "a.pt2 is not written: it would differ from the agent by 0" in complaint("export", run, "--torch", file)
    (run / "checkpoints").rename(tmp_path / "elsewhere")
    assert "no checkpoint" in complaint("export", run, "--torch", file)
    find, gone = importlib.util.find_spec, ("onnx", "onnxruntime")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name in gone else find(name, *more))
    (tmp_path / "elsewhere").rename(run / "checkpoints")
    missing = complaint("export", run, "--onnx", file)
    assert 'writing ONNX needs onnx, onnxruntime: pip install ".[export]"' in missing
    assert there.read_bytes() == b"mine"
    assert not file.parent.exists()


def test_what_cannot_be_exported_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = agent_of({}, VECTOR, Discrete(2))
    agent.policy.trunk.encoder = Looking(5)
    with pytest.raises(ExportError, match=r"torch\.export cannot export this policy"):
        export_agent(agent, torch=tmp_path / "a.pt2")
    with pytest.raises(ConfigError, match="which file"):
        export_agent(agent)
    brief = agent_of(dict(precision="bfloat16"), Box(0, 255, (9, 9, 3), np.uint8), Discrete(2))
    with pytest.raises(ExportError, match="no bfloat16 convolutions: --torch"):
        export_agent(brief, onnx=tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())
    export_agent(brief, torch=tmp_path / "a.pt2")
    program = torch.export.load(tmp_path / "a.pt2").module()
    picture = np.random.default_rng(0).integers(0, 256, (5, 9, 9, 3), np.uint8)
    agree = program({"observation": torch.from_numpy(picture)})["action"].numpy() == brief.act(picture)
    assert agree.all()


class Looking(torch.nn.Identity):
    """An encoder that looks at numbers."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input if float(input.sum()) > 0 else -input
