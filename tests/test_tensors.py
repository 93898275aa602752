"""Environments in tensors: CartPole moves as Gymnasium's does; episodes never merge, compiled or not; both learn."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

import proximo
from proximo import compiler
from proximo.advantages import gae
from proximo.batch import Batch
from proximo.compiler import compiling
from proximo.run.checkpoint import all_of
from proximo.sources.backends import tensor_lanes
from proximo.sources.cartpole import CartPole, motion
from proximo.sources.tensors import TensorEnv, TensorSource, Transition
from tests.conftest import SMALL, TINY_FLAGS, Command, Complaint, rest_slow
from tests.test_envs import LIMITS, TAU, Oracle, knows_the_corridor
from tests.toys import GAMMA, Corridors, corridor_value

needs_compiler = pytest.mark.skipif(compiler.missing() is not None, reason=str(compiler.missing()))
both = pytest.mark.parametrize("compile", [False, pytest.param(True, marks=needs_compiler)])
both_if_slow = pytest.mark.parametrize(
    "compile", [False, pytest.param(True, marks=[needs_compiler, pytest.mark.slow])]
)  # compiles for a minute, and what is shown by it others show as well
few_steps = pytest.mark.usefixtures("short_graphs")
STYLES: dict[str, dict[str, bool]] = {
    "in place": {},
    "assigned": dict(assign=True),
    "its own memory": dict(shared=True),
    "assigned memory": dict(assign=True, shared=True),
}
HORIZONS = [1, 2, 7, 16, 32]


@pytest.fixture
def short_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs of four steps are compiled in less time than those of sixteen, and must be as right."""
    monkeypatch.setattr("proximo.sources.tensors.UNROLLED", 4)


def collected(env: TensorEnv, policy: Any, horizon: int, count: int, compile: bool = False) -> list[Batch]:
    source = TensorSource(lambda seed: env, horizon)
    with compiling(compile):
        source.restart(3)
        return [source.collect(policy) for _ in range(count)]


def gymnasium_says(states: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Next states and terminations, one environment after the other, in float64."""
    env: Any = gym.make("CartPole-v1").unwrapped
    moved, terminated = [], []
    for state, action in zip(states, actions, strict=True):
        env.reset(seed=0)
        env.state, env.steps_beyond_terminated = state, None
        terminated.append(env.step(int(action))[2])
        moved.append(np.array(env.state))
    return np.array(moved), np.array(terminated)


def test_cartpole_moves_and_falls_as_gymnasiums() -> None:
    random = np.random.default_rng(0)
    states = random.uniform(-1, 1, (2000, 4)).astype(np.float32) * np.float32([2.6, 4, 0.24, 4])
    actions = random.integers(0, 2, 2000)
    moved, terminated = gymnasium_says(states.astype(np.float64), actions)
    mine = motion(torch.from_numpy(states), torch.from_numpy(actions))
    assert np.abs(mine.numpy() - moved).max() < 1e-5
    env = CartPole(2000)
    env.reset(0)
    env.state.copy_(torch.from_numpy(states))
    said = env.step(torch.from_numpy(actions), env.noise(1)[0])
    np.testing.assert_array_equal(said.terminated.numpy(), terminated)
    assert 0.1 < terminated.mean() < 0.9
    assert not said.truncated.any()
    assert (said.reward == 1).all()


@pytest.mark.parametrize("limit", range(5, 13))
@pytest.mark.parametrize("vector", [False, True])
def test_cartpole_ends_as_gymnasiums_also_where_both_ends_meet(limit: int, vector: bool) -> None:
    """Always pushing right, the pole falls after 8 to 11 steps."""
    lanes, env = 8, CartPole(8, limit=limit)
    env.reset(1)
    if vector:
        theirs: Any = gym.make_vec("CartPole-v1", lanes, max_episode_steps=limit)
    else:
        theirs = gym.vector.SyncVectorEnv([lambda: gym.make("CartPole-v1", max_episode_steps=limit)] * lanes)
    theirs.reset(seed=0)
    if vector:
        theirs.unwrapped.state = env.state.double().numpy().T.copy()
    else:
        for lane, state in zip(theirs.envs, env.state.double().numpy(), strict=True):
            lane.unwrapped.state = state
    ended, both = torch.zeros(lanes, dtype=torch.bool), 0
    for _ in range(limit):
        said = env.step(torch.ones(lanes, dtype=torch.int64), env.noise(1)[0])
        _, _, terminated, truncated, _ = theirs.step(np.ones(lanes, np.int64))
        np.testing.assert_array_equal(said.terminated[~ended].numpy(), terminated[~ended.numpy()])
        np.testing.assert_array_equal(said.truncated[~ended].numpy(), truncated[~ended.numpy()])
        both += int((terminated & truncated)[~ended.numpy()].sum())
        ended |= said.terminated | said.truncated
    assert ended.all()
    assert (both > 0) == (limit in (9, 10))


def test_cartpole_has_gymnasiums_spaces_and_begins_where_its_does() -> None:
    env, theirs = CartPole(5000), gym.make("CartPole-v1")
    assert env.single_observation_space == theirs.observation_space
    assert env.single_action_space == theirs.action_space
    assert tensor_lanes("CartPole-v1", 2, None, "cpu").episode_limit == theirs.spec.max_episode_steps  # type: ignore[union-attr]
    torch.manual_seed(0)
    for begun in (env.reset(0), env.noise(1)[0]):
        assert begun.abs().max() <= 0.05
        assert (begun.std(0) - 0.05 / 3**0.5).abs().max() < 1e-3
        assert torch.corrcoef(begun.T).fill_diagonal_(0).abs().max() < 0.05
    assert torch.equal(env.reset(4), env.reset(4))
    assert not torch.equal(env.reset(4), env.reset(5))


@both
@few_steps
@pytest.mark.parametrize("limit", [7, 500])
def test_the_next_value_is_that_of_the_true_next_state(limit: int, compile: bool) -> None:
    policy = Oracle(lambda observation: observation[..., 0].double())
    for batch in collected(CartPole(6, limit=limit), policy, 48, 3, compile):
        moved = batch.observation[..., 0].double() + TAU * batch.observation[..., 1].double()
        known = ~(batch.terminated & ~batch.truncated)
        torch.testing.assert_close(batch.next_value[known & ~batch.terminated], moved[known & ~batch.terminated])
        assert batch.truncated.any() == (limit == 7)
        assert batch.terminated.any() == (limit == 500)
        assert batch.observation[1:][(batch.terminated | batch.truncated)[:-1]].abs().max() <= 0.05


COMPILED = [(16, "in place"), (1, "assigned memory")]
COMPILED_IF_SLOW = [*((horizon, "in place") for horizon in HORIZONS if horizon != 16), (32, "assigned memory")]


@few_steps
@pytest.mark.parametrize(
    ("horizon", "style", "compile"),
    [
        *((horizon, style, False) for horizon in HORIZONS for style in STYLES),
        *(pytest.param(*case, True, marks=needs_compiler) for case in COMPILED),
        *(pytest.param(*case, True, marks=[needs_compiler, pytest.mark.slow]) for case in COMPILED_IF_SLOW),
    ],
)
def test_a_policy_that_knows_the_values_has_no_advantage(horizon: int, style: str, compile: bool) -> None:
    env = Corridors(LIMITS, **STYLES[style])
    batches = collected(env, knows_the_corridor(), horizon, 96 // horizon, compile)
    for batch in batches:
        assert gae(batch, GAMMA, 0.95).advantage.abs().max() < 1e-6
        live = ~batch.terminated
        position = batch.observation.squeeze(-1).double()
        torch.testing.assert_close(batch.next_value[live], corridor_value(position + 1)[live])
        assert (batch.reward == 1).all()
        assert (batch.action == 1).all()
        assert batch.mask.all()
        assert (batch.terminated == (position == 6)).all()
    whole = {name: torch.cat([getattr(b, name) for b in batches]) for name in ("truncated", "terminated", "start")}
    ended = whole["truncated"] | whole["terminated"]
    assert (whole["truncated"] & whole["terminated"]).any()
    assert (whole["truncated"] & ~whole["terminated"]).any()
    assert torch.equal(whole["start"][1:], ended[:-1])
    assert whole["start"][0].all()
    walked = torch.cat([b.observation for b in batches]).squeeze(-1)
    for lane, limit in enumerate(LIMITS):
        assert walked[:, lane].tolist() == walk_of(limit, len(walked))


def walk_of(limit: int, steps: int, end: int = 7) -> list[float]:
    """Positions along the corridor's episodes, one after the other."""
    positions, episode = list[float](), 0
    while len(positions) < steps:
        first = episode % 3
        positions += [float(first + k) for k in range(min(limit, end - first))]
        episode += 1
    return positions[:steps]


def test_wrong_bootstraps_would_be_seen() -> None:
    [batch] = collected(Corridors(LIMITS), knows_the_corridor(), 32, 1)
    merged = batch.replace(terminated=batch.terminated | batch.truncated)
    of_the_next = batch.replace(next_value=torch.cat([batch.value[1:], batch.next_value[-1:]]))
    for wrong in (merged, of_the_next):
        assert gae(wrong, GAMMA, 0.95).advantage.abs().max() > 0.1


@both_if_slow
@few_steps
def test_episodes_are_counted_across_collections_and_given_up_at_a_restart(compile: bool) -> None:
    source = TensorSource(lambda seed: Corridors([4, 4]), 16)
    with compiling(compile):
        source.restart(0)
        for _ in range(2):
            source.collect(knows_the_corridor() if source.policy is None else source.policy)
        assert source.episodes.metrics() == {"episodes": 16, "return_mean": 4.0, "length_mean": 4.0}
        source.env.limits.fill_(6)  # type: ignore[attr-defined]
        source.restart(0)
        batch = source.collect(source.policy)  # type: ignore[arg-type]
    assert batch.start[0].all()
    assert batch.observation[:6, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert source.episodes.count == 20  # 6 + 6 and four open
    assert source.episodes.returns[16:20].tolist() == [6, 6, 6, 6]


TENSOR = dict(backend="tensor", quiet=True, eval_every=0, eval_episodes=1, envs=4, horizon=32, epochs=2, minibatches=4)


@needs_compiler
def test_a_compiled_run_is_the_uncompiled_one_up_to_rounding(tmp_path: Path) -> None:
    runs = [
        proximo.train("CartPole-v1", steps=1024, **TENSOR, compile=compile, out=tmp_path / f"{compile}-{i}")
        for i, compile in enumerate(("off", "on", "on"))
    ]
    states = [run.policy.state_dict() for run in runs]
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=1e-3, atol=1e-4)
        assert torch.equal(states[1][name], states[2][name])
    assert runs[0].metrics["episodes"] == runs[1].metrics["episodes"] > 10


@pytest.mark.parametrize(
    ("env", "compile"),
    [
        ("CartPole-v1", False),
        ("passed", False),
        pytest.param("CartPole-v1", True, marks=[needs_compiler, pytest.mark.slow]),
        pytest.param("passed", True, marks=[needs_compiler, pytest.mark.slow]),
    ],
)
def test_save_and_exact_resume(env: str, compile: bool, tmp_path: Path) -> None:
    settings: dict[str, Any] = {**TENSOR, "checkpoint_every": 512, "compile": "on" if compile else "off"}
    settings |= dict(normalize_observation=True, normalize_reward=True)

    def made() -> Any:
        return CartPole(4) if env == "passed" else env

    whole = proximo.train(made(), steps=2048, out=tmp_path / "whole", **settings)
    broken = proximo.train(made(), steps=2048, out=tmp_path / "broken", **settings)
    for late in all_of(broken.folder)[2:]:
        shutil.rmtree(late)
    resumed = proximo.resume(broken.folder, env=made(), quiet=True)
    assert resumed.step == whole.step == 2048
    assert len(all_of(whole.folder)) == 5
    for one, other in zip(all_of(whole.folder), all_of(broken.folder), strict=True):
        for file in ("model.safetensors", "state.safetensors"):
            assert (one / file).read_bytes() == (other / file).read_bytes(), one


def test_several_seeds_are_each_the_run_alone(command: Command, tmp_path: Path) -> None:
    words = ["train", "CartPole-v1", *TINY_FLAGS, "--backend", "tensor"]
    assert command(*words, "--seeds", "0-1", "--out", tmp_path / "both").code == 0
    assert command(*words, "--seed", 1, "--out", tmp_path / "alone").code == 0
    last, alone = (all_of(tmp_path / run)[-1] / "model.safetensors" for run in ("both/seed-1", "alone"))
    assert last.read_bytes() == alone.read_bytes()


def test_it_learns_cartpole(tmp_path: Path) -> None:
    run = proximo.train("CartPole-v1", backend="tensor", quiet=True, eval_every=0, out=tmp_path / "run")
    assert run.config.preset == "cartpole"
    assert run.metrics["return_mean"] >= 400
    assert run.score is not None
    assert run.score.mean >= 400


@pytest.mark.slow
def test_it_learns_as_fast_as_from_gymnasiums_cartpole(tmp_path: Path) -> None:
    """Steps until the mean return reaches 300, median of five seeds. (A few in a hundred seeds fall on either.)"""
    reached: dict[str, list[int]] = {"sync": [], "tensor": []}
    for seed in range(5):
        for backend, steps in reached.items():
            folder = tmp_path / f"{backend}-{seed}"
            settings: dict[str, Any] = dict(seed=seed, compile="off", quiet=True, eval_every=0, eval_episodes=1)
            proximo.train("CartPole-v1", backend=backend, out=folder, **settings)
            rows = [line.split('"return_mean": ') for line in (folder / "metrics.jsonl").read_text().splitlines()]
            good = [k for k, row in enumerate(rows) if row[1][:4] != "null" and float(row[1].split(",")[0]) >= 300]
            steps.append(good[0] if good else len(rows))
    medians = [float(np.median(steps)) for steps in reached.values()]
    assert medians[1] == pytest.approx(medians[0], rel=0.2), reached


class Odd(Corridors):
    """A corridor whose `reset`, `noise` or `step` returns something else instead."""

    def __init__(self, reset: Any = None, noise: Any = None, step: Any = None, **space: gym.Space) -> None:
        super().__init__([5, 5, 5])
        self.odd_reset, self.odd_noise, self.odd_step = reset, noise, step
        self.single_action_space = space.get("action", self.single_action_space)
        self.single_observation_space = space.get("observation", self.single_observation_space)

    def reset(self, seed: int) -> Any:
        seen = super().reset(seed)
        return self.odd_reset(seen) if self.odd_reset else seen

    def noise(self, steps: int) -> Any:
        return self.odd_noise(steps) if self.odd_noise else super().noise(steps)

    def step(self, action: Tensor, noise: Tensor) -> Any:
        made = super().step(action, noise)
        return self.odd_step(made) if self.odd_step else made


def raises(*made: Any) -> Any:
    raise RuntimeError("the simulator\nis gone")


def with_part(**parts: Any) -> Any:
    return lambda made: made._replace(**{name: make(getattr(made, name)) for name, make in parts.items()})


def spoiled(value: float) -> Any:
    """The number in lane 1 is another one."""
    return lambda column: column.index_fill(0, torch.tensor([1]), value)


BOX = spaces.Box(-1, 1, (1,))
LONG = with_part(observation=Tensor.long, final=Tensor.long)
FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "reset raises": (dict(reset=raises), r"reset\(\) raised RuntimeError: the simulator is gone"),
    "reset of another shape": (dict(reset=lambda x: x[:, 0]), r"observation of shape \(3,\), not \(3, 1\)"),
    "reset to an array": (dict(reset=lambda x: x.numpy()), "observation as a ndarray"),
    "reset elsewhere": (dict(reset=lambda x: x.to("meta")), "environment is on meta, but the policy is on cpu"),
    "noise raises": (dict(noise=raises), r"noise\(\) raised RuntimeError"),
    "noise too short": (dict(noise=lambda n: torch.zeros(n - 1, 3)), r"noise\(32\) must return a tensor of that many"),
    "noise of nothing": (dict(noise=lambda n: None), r"noise\(32\) must return a tensor"),
    "noise a number": (dict(noise=lambda n: torch.zeros(())), r"noise\(32\) must return a tensor"),
    "step raises": (dict(step=raises), r"step\(\) raised RuntimeError: the simulator is gone"),
    "step returns four": (dict(step=lambda made: made[:4]), r"step\(\) raised TypeError"),
    "step returns None": (dict(step=lambda made: None), r"step\(\) raised TypeError"),
    "observation": (dict(step=with_part(observation=lambda x: x[:2])), r"observation of shape \(2, 1\), not \(3, 1\)"),
    "final": (dict(step=with_part(final=lambda x: x.expand(3, 2))), r"final of shape \(3, 2\), not \(3, 1\)"),
    "final None": (dict(step=with_part(final=lambda x: None)), "final as a NoneType, not as a tensor"),
    "reward": (dict(step=with_part(reward=lambda x: x[:, None])), r"reward of shape \(3, 1\), not \(3,\)"),
    "reward of one": (dict(step=with_part(reward=lambda x: x.sum())), r"reward of shape \(\), not \(3,\)"),
    "reward of bools": (dict(step=with_part(reward=lambda x: x > 0)), r"reward of torch.bool, not of torch.float32"),
    "reward elsewhere": (dict(step=with_part(reward=lambda x: x.to("meta"))), "reward on meta, .* policy is on cpu"),
    "terminated of floats": (
        dict(step=with_part(terminated=Tensor.float)),
        "terminated of torch.float32, not of .*bool",
    ),
    "truncated of ints": (dict(step=with_part(truncated=Tensor.long)), "truncated of torch.int64, not of torch.bool"),
    "terminated of many": (dict(step=with_part(terminated=lambda x: x.repeat(2))), r"terminated of shape \(6,\)"),
    "nan in reset": (dict(reset=spoiled(np.nan)), r"observation\[0\] = nan in lane 1 at step 0"),
    "nan seen": (dict(step=with_part(observation=spoiled(np.nan))), r"observation\[0\] = nan in lane 1 at step 1 "),
    "infinite reward": (dict(step=with_part(reward=spoiled(-np.inf))), "reward = -inf in lane 1 at step 0 "),
    "nan at the end": (
        dict(step=with_part(final=spoiled(np.nan))),
        r"final observation\[0\] = nan in lane 1 at step 4 ",
    ),
    "bounded": (dict(action=spaces.Box(-1, np.inf, (2,))), "a Box must be unbounded"),
    "start at 1": (dict(action=spaces.Discrete(3, start=1)), "a choice begin at 0"),
    "starts": (dict(action=spaces.MultiDiscrete([2, 2], start=[0, 1])), "a choice begin at 0"),
    "text": (dict(action=spaces.Text(3)), "not supported yet"),
    "bounded within": (dict(action=spaces.Dict(a=spaces.Box(-1, 1, (2,)))), "a Box must be unbounded"),
    "a text seen": (dict(observation=spaces.Text(3)), "a tensor holds no text"),
    "a text within": (dict(observation=spaces.Dict(a=spaces.Text(3))), "the leaf /a of .* a tensor holds no text"),
    "no leaf": (dict(observation=spaces.Dict(a=BOX)), "returned no observation/a, which its space has"),
    "a choice of floats": (dict(observation=spaces.MultiDiscrete([9])), "torch.float32, not of torch.int64"),
    "a choice too high": (
        dict(observation=spaces.MultiDiscrete([3]), reset=Tensor.long, step=LONG),
        r"observation\[0\] = 3, which is not in MultiDiscrete\(\[3\]\), in lane 0 at step 3 of the rollout",
    ),
    "an image of floats": (dict(observation=spaces.Box(0, 255, (1, 1), np.uint8)), r"shape \(3, 1\), not \(3, 1, 1\)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_environment_is_told_in_one_line(fault: str, tmp_path: Path) -> None:
    parts, words = FAULTS[fault]
    settings = SMALL | dict(envs=3, minibatches=1, compile="off")
    with pytest.raises(proximo.ProximoError) as caught:
        proximo.train(Odd(**parts), **settings, quiet=True, out=tmp_path / "run")
    assert re.search(words, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)
    assert ("nan" in fault or "infinite" in fault) == isinstance(caught.value, proximo.NonFiniteError)
    if (tmp_path / "run").exists():
        proximo.load(tmp_path / "run")


@needs_compiler
@few_steps
@pytest.mark.parametrize(
    "fault", rest_slow(["step raises", "reward", "terminated of floats", "nan seen"], ["step raises"])
)
def test_a_compiled_one_too(fault: str, tmp_path: Path) -> None:
    parts, words = FAULTS[fault]
    with pytest.raises(proximo.ProximoError, match=words):
        proximo.train(Odd(**parts), **SMALL | dict(envs=3, minibatches=1, compile="on"), quiet=True, out=tmp_path / "x")


def test_nan_in_what_came_last_is_named_before_it_is_learned_from() -> None:
    env = Corridors([50, 50], end=50)
    source = TensorSource(lambda seed: env, 16)
    source.restart(0)
    step, taken = env.step, [0]

    def late(action: Tensor, noise: Tensor) -> Transition:
        taken[0] += 1
        made = step(action, noise)
        return made if taken[0] < 16 else made._replace(observation=spoiled(np.nan)(made.observation))

    env.step = late  # type: ignore[method-assign]
    with pytest.raises(proximo.NonFiniteError, match=r"observation\[0\] = nan in lane 1 at step 16 of the rollout"):
        source.collect(knows_the_corridor())  # type: ignore[arg-type]


def test_a_terminated_episode_may_end_in_nan() -> None:
    """A simulator that blew up and says so; nobody asks for the value of such a state."""
    step = lambda made: made._replace(final=torch.where(made.terminated[:, None], torch.nan, made.final))  # noqa: E731
    env = Odd(step=step)
    env.limits.fill_(50)
    [batch] = collected(env, knows_the_corridor(), 32, 1)
    assert batch.terminated.any()
    assert gae(batch, GAMMA, 0.95).advantage.abs().max() < 1e-6


class Hidden(Corridors):
    """It counts in a plain attribute, which no graph can see."""

    def __init__(self, limits: list[int]) -> None:
        super().__init__(limits)
        self.clock = 0

    def step(self, action: Tensor, noise: Tensor) -> Transition:
        self.clock = self.clock + 1
        return super().step(action, noise)._replace(reward=torch.full((self.num_envs,), float(self.clock)))


class Secret(Hidden):
    """Its plain attribute is a tensor."""

    def step(self, action: Tensor, noise: Tensor) -> Transition:
        self.clock = self.clock + torch.ones(())
        return Corridors.step(self, action, noise)._replace(reward=torch.ones(self.num_envs) * self.clock)


@needs_compiler
@few_steps
@pytest.mark.parametrize("kind", [Hidden, pytest.param(Secret, marks=pytest.mark.slow)])
def test_an_environment_with_hidden_state_runs_uncompiled_and_right(
    kind: type[Hidden], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "proximo"):
        batches = collected(kind([5, 5]), knows_the_corridor(), 32, 2, compile=True)
    assert torch.cat([batch.reward[:, 0] for batch in batches]).tolist() == list(range(1, 65))
    assert "runs uncompiled" in caplog.text
    assert "clock" in caplog.text


def test_a_buffer_that_becomes_something_else_is_told() -> None:
    class Growing(Corridors):
        def reset(self, seed: int) -> Tensor:
            seen = super().reset(seed)
            self.limits = torch.zeros(7)
            return seen

    with pytest.raises(
        proximo.EnvFailure, match=r"buffer 'limits' was torch.int64 \[2\] and became torch.float32 \[7\]"
    ):
        collected(Growing([5, 5]), knows_the_corridor(), 16, 1)


@pytest.mark.parametrize("env", ["Acrobot-v1", "CartPole-v0", "Nothing-v3"])
def test_the_tensor_backend_for_another_environment_is_told(env: str, complaint: Complaint) -> None:
    assert "CartPole-v1" in complaint("--backend", "tensor", train=env) or env == "Nothing-v3"


@pytest.mark.parametrize(
    ("made", "settings", "words"),
    [
        (lambda: CartPole(4), dict(envs=5), "envs is 5, but the vector environment has 4 lanes"),
        (lambda: CartPole(4), dict(envs=4, device="cuda"), "the environment lives on cpu"),
        (lambda: lambda: CartPole(4), {}, "returned a CartPole, not a gymnasium.Env: pass it instead of its maker"),
        (lambda: CartPole, {}, "making the environment raised TypeError: .*'lanes'"),
    ],
)
def test_what_cannot_be_is_told(made: Any, settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(proximo.ProximoError, match=words):
        proximo.train(made(), **{**SMALL, **settings}, quiet=True, out=tmp_path / "run")


@pytest.mark.parametrize("name", ["cpu", 3])
def test_a_device_that_is_none_is_told_and_its_name_will_do(name: Any, tmp_path: Path) -> None:
    class Named(CartPole):
        device = name  # type: ignore[assignment]

    settings = SMALL | dict(envs=4, quiet=True, out=tmp_path / "run")
    if name == "cpu":
        assert proximo.train(Named(4), **settings).step == 512
    else:
        with pytest.raises(proximo.ConfigError, match="device is 3, not a torch"):
            proximo.train(Named(4), **settings)
