"""Environments in tensors that show trees and masks, take trees of actions, and are played with a memory.

The measure is the same maze as a Gymnasium environment: with the same noise both sources collect the same batch.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor, nn

import proximo
from proximo import compiler
from proximo.batch import Batch, leaves_of, tree_map
from proximo.compiler import compiling
from proximo.compiler.trace import Trace
from proximo.models.actor_critic import ActorCritic
from proximo.models.network import Network
from proximo.observations import MASK
from proximo.run.checkpoint import all_of
from proximo.sources.acting import final_values
from proximo.sources.cartpole import CartPole
from proximo.sources.envs import EnvSource
from proximo.sources.tensors import TensorEnv, TensorSource, Together, Transition, together
from proximo.sources.vecenv import VecEnvLanes
from tests.toys import Cues

needs_compiler = pytest.mark.skipif(compiler.missing() is not None, reason=str(compiler.missing()))
LIMITS = (1, 3, 7, 50)  # steps after which the episodes of a lane are cut
HORIZON, PIXELS = 24, np.arange(64).reshape(8, 8, 1)
PUSH = spaces.Box(-np.inf, np.inf, (2,))


def spaces_of(tree: bool, masked: bool, pushes: bool) -> tuple[gym.Space, gym.Space]:
    """What is seen and done: of a tree a mask or, which is slower, a picture."""
    side, number = spaces.Discrete(3), spaces.Box(-100, 100, (2,))
    seen: dict[str, gym.Space] = {"inner": spaces.Tuple([spaces.Discrete(3, start=1), number])}
    picture = spaces.Box(0, 255, PIXELS.shape, np.uint8)
    seen |= {MASK: spaces.MultiBinary(3)} if masked else {"picture": picture}
    return spaces.Dict(seen) if tree else number, spaces.Dict(side=side, push=PUSH) if pushes else side


class Maze(gym.Env):
    """A walk by −1, 0 or 1 that ends beyond 3 on either side; nothing is random, and no two episodes look alike."""

    def __init__(self, limit: int, *kind: bool) -> None:
        self.observation_space, self.action_space = spaces_of(*kind)
        (self.tree, self.masked, self.pushes), self.limit, self.episode = kind, limit, -1

    def seen(self) -> Any:
        p, t, k = self.place, self.t, self.episode
        number = np.array([p / 4, t / 8], np.float32)
        picture = ((PIXELS * (p + 5) + 31 * k) % 256).astype(np.uint8)
        mask = np.array([(p + k + j) % 3 != 0 for j in range(3)], np.int8)
        tree = {"inner": (1 + (p + k) % 3, number)} | ({MASK: mask} if self.masked else {"picture": picture})
        return tree if self.tree else number

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.episode, self.t = self.episode + 1, 0
        self.place = self.episode % 3 - 1
        return self.seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        push = float(np.tanh(action["push"]).sum()) if self.pushes else 0.0
        self.place += int(action["side"] if self.pushes else action) - 1
        self.t += 1
        return self.seen(), self.place + push, abs(self.place) > 3, self.t == self.limit, {}


class Mazes(nn.Module):
    """The same in tensors, a lane for each limit."""

    place: Tensor
    t: Tensor
    episode: Tensor
    limits: Tensor
    pixels: Tensor

    def __init__(self, limits: Sequence[int], *kind: bool) -> None:
        super().__init__()
        self.single_observation_space, self.single_action_space = spaces_of(*kind)
        (self.tree, self.masked, self.pushes), self.num_envs = kind, len(limits)
        self.device = torch.device("cpu")
        for name in ("place", "t", "episode"):
            self.register_buffer(name, torch.zeros(len(limits), dtype=torch.int64))
        self.register_buffer("limits", torch.tensor(limits))
        self.register_buffer("pixels", torch.from_numpy(PIXELS.copy()))

    def seen(self, p: Tensor, t: Tensor, k: Tensor) -> Any:
        number = torch.stack([p / 4, t / 8], -1)
        if not self.tree:
            return number
        shade = (self.pixels * (p + 5)[:, None, None, None] + 31 * k[:, None, None, None]) % 256
        mask = torch.stack([(p + k + j) % 3 != 0 for j in range(3)], -1)
        last = {MASK: mask} if self.masked else {"picture": shade.to(torch.uint8)}
        return last | {"inner": (1 + (p + k) % 3, number)}  # in another order

    def reset(self, seed: int) -> Any:
        self.t.zero_()
        self.episode.zero_()
        self.place.fill_(-1)
        return self.seen(self.place, self.t, self.episode)

    def noise(self, steps: int) -> Tensor:
        return torch.empty(steps, 0)

    def step(self, action: Any, noise: Tensor) -> Transition:
        push = action["push"].tanh().sum(-1) if self.pushes else 0.0
        place, t = self.place + (action["side"] if self.pushes else action) - 1, self.t + 1
        terminated, truncated = place.abs() > 3, t == self.limits
        final, ended = self.seen(place, t, self.episode), terminated | truncated
        self.episode.add_(ended)
        self.place.copy_(torch.where(ended, self.episode % 3 - 1, place))
        self.t.copy_(torch.where(ended, 0, t))
        tree_map(lambda x: x.zero_(), action)  # it may do as it likes with what it was given
        return Transition(self.seen(self.place, self.t, self.episode), place + push, terminated, truncated, final)


CASES: dict[str, tuple[tuple[bool, bool, bool], dict[str, Any]]] = {
    "plain": ((False, False, False), {}),
    "gru": ((False, False, False), dict(memory="gru")),
    "a stack": ((False, False, False), dict(frame_stack=3)),
    "a stack of a tree with a mask": ((True, True, False), dict(frame_stack=2)),
    "lstm, separate, a tree": ((True, False, False), dict(memory="lstm", trunk="separate")),
    "transformer": ((False, False, False), dict(memory="transformer", memory_window=5)),
    "a tree with a mask": ((True, True, False), {}),
    "a mask and a memory": ((True, True, False), dict(memory="gru")),
    "a mask of a part of a tree of actions": ((True, True, True), {}),
    "a tree of actions": ((True, False, True), {}),
    "a tree of actions and a memory": ((False, False, True), dict(memory="transformer", memory_window=5)),
}


def policy_for(kind: tuple[bool, ...], extra: dict[str, Any], sequence: int = 12) -> ActorCritic:
    """A policy whose choices depend on what it sees and remembers."""
    torch.manual_seed(0)
    policy = ActorCritic(*spaces_of(*kind), Network(**extra, memory_size=8, hidden=(8,), sequence=sequence))
    for tower in (policy.actor, policy.critic):
        nn.init.normal_(tower[-1].weight)
    return policy


def collected(source: Any, policy: Any, count: int = 3) -> list[tuple[Batch, Any]]:
    """Collections and the noise of each."""
    source.restart(3)
    found = []
    for k in range(count):
        torch.manual_seed(k)
        batch = source.collect(policy)
        torch.manual_seed(k)
        found.append((batch, policy.noise(HORIZON, len(LIMITS))))
    source.close()
    return found


def in_tensors(kind: tuple[bool, ...]) -> TensorSource:
    return TensorSource(lambda seed: Mazes(LIMITS, *kind), HORIZON)


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
@pytest.mark.parametrize("case", CASES)
def test_both_sources_collect_the_same_batch(case: str, mode: AutoresetMode) -> None:
    kind, extra = CASES[case]
    policy, makers = policy_for(kind, extra), [partial(Maze, limit, *kind) for limit in LIMITS]
    theirs = EnvSource(lambda seed: SyncVectorEnv(makers, autoreset_mode=mode), HORIZON)
    for (one, _), (other, _) in zip(collected(in_tensors(kind), policy), collected(theirs, policy), strict=True):
        assert vars(one).keys() == vars(other).keys()
        assert ("memory" in vars(one)) == policy.remembers == bool({"memory", "frame_stack"} & extra.keys())
        assert one.truncated.any()
        known = ~one.terminated  # nobody asks what comes after an end
        one, other = (x.replace(next_value=x.next_value[known]) for x in (one, other))
        for name, column in vars(one).items():
            for mine, wanted in zip(leaves_of(column), leaves_of(getattr(other, name)), strict=True):
                exact = name == "observation" or not mine.is_floating_point()
                torch.testing.assert_close(mine, wanted, rtol=0, atol=0 if exact else 1e-5)


@pytest.mark.parametrize("case", [case for case in CASES if {"memory", "frame_stack"} & CASES[case][1].keys()])
def test_whole_lanes_evaluate_to_what_was_chosen_step_by_step(case: str) -> None:
    kind, extra = CASES[case]
    policy = policy_for(kind, extra, 6)
    for batch, noise in collected(in_tensors(kind), policy):
        units, drawn = batch.units(), Batch(x=noise, memory=batch.memory).sequences().x
        for part, chance in ((batch, noise), (units, drawn)):
            with torch.no_grad():
                opinion = policy.evaluate(part)
            torch.testing.assert_close(opinion.distribution.sample(chance), part.action, rtol=0, atol=1e-5)
            torch.testing.assert_close(opinion.logp, part.logp, rtol=0, atol=1e-5)
            torch.testing.assert_close(opinion.value, part.value, rtol=0, atol=1e-5)


@pytest.mark.parametrize("memory", ["lstm", "gru", "transformer"])
def test_final_observations_are_valued_with_what_was_remembered(memory: Any) -> None:
    """Any pattern of cuts, also at both ends of a sequence: the values are those of single steps."""
    policy, size = policy_for((False, False, False), dict(memory=memory)), (HORIZON, 4)
    seen, final, cut = torch.randn(*size, 2), torch.randn(*size, 2), torch.rand(size) < 0.3
    cut[11], cut[:, 3] = torch.tensor([True, True, False, False]), False
    final[~cut] = torch.nan  # a simulator may leave anything there
    start = torch.cat([torch.ones(1, 4, dtype=torch.bool), cut[:-1]])
    memory, kept, wanted = policy.initial(4), [], torch.zeros(size)
    for t in range(HORIZON):
        kept += [memory] if t % 12 == 0 else []
        _, memory = policy.act(seen[t], None, memory, start[t])
        wanted[t] = policy.value(final[t], memory, torch.zeros(4, dtype=torch.bool)).detach()
    flags = dict(start=start, truncated=cut, mask=torch.ones_like(cut))
    action = torch.zeros(size, dtype=torch.int64)
    batch = Batch(observation=seen, action=action, memory=together(torch.stack, kept), **flags)
    torch.testing.assert_close(final_values(policy, batch, final)[cut], wanted[cut], rtol=0, atol=1e-5)


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[Trace]:
    """What would be compiled; tracing raises where a function waits for the device to look at a number."""
    found = list[Trace]()
    monkeypatch.setattr(compiler, "fuse", lambda function, tensors, lasting: found.append(Trace(function, tensors)))
    return found


@pytest.mark.parametrize("case", CASES)
def test_no_step_and_no_judgement_looks_at_a_number(case: str, traces: list[Trace]) -> None:
    kind, extra = CASES[case]
    collected(in_tensors(kind), policy_for(kind, extra, 4), 1)
    assert len(traces) == 2


def test_a_plain_policy_walks_by_the_operations_it_always_did(traces: list[Trace]) -> None:
    env = CartPole(4)
    policy = ActorCritic(env.single_observation_space, env.single_action_space, Network(hidden=(8,)))
    collected(TensorSource(lambda seed: env, HORIZON), policy, 1)

    def by_hand(observation: Tensor, noise: Tensor, chance: Tensor) -> tuple[Tensor, ...]:
        rows = []
        for drawn, happened in zip(noise.unbind(), chance.unbind(), strict=True):
            action = policy.act(observation, drawn)[0]
            following, *outcome = env.step(action.clone(), happened)
            rows.append((observation, action, *outcome))
            observation = following
        return observation, *(torch.stack(column) for column in zip(*rows, strict=True))

    example = [env.reset(0), policy.noise(HORIZON, 4), env.noise(HORIZON)]
    compiler.fused(Together(policy=policy, env=env), by_hand, example)
    assert traces[-1].operations == traces[0].operations
    assert traces[-1].results == traces[0].results


@pytest.mark.slow  # a minute of compiling
@needs_compiler
def test_compiled_it_is_the_uncompiled_one_up_to_rounding(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two calls a sequence, a step in each: graphs are compiled in less time, and must be as right."""
    monkeypatch.setattr("proximo.sources.tensors.UNROLLED", 1)
    kind, extra = CASES["a mask and a memory"]
    policy = policy_for(kind, extra, 2)
    plain = collected(in_tensors(kind), policy, 2)
    with compiling(True), caplog.at_level(logging.WARNING, "proximo"):
        graphs = collected(in_tensors(kind), policy, 2)
    assert not caplog.records, caplog.text
    for (one, _), (other, _) in zip(graphs, plain, strict=True):
        for mine, wanted in zip(one.leaves(), other.leaves(), strict=True):
            torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", ["a mask and a memory", "a tree of actions and a memory"])
def test_save_and_exact_resume(case: str, tmp_path: Path) -> None:
    kind, extra = CASES[case]
    settings: dict[str, Any] = dict(horizon=HORIZON, envs=4, epochs=2, minibatches=2, sequence=12, hidden=(8,))
    settings |= dict(checkpoint_every=96, memory_size=8, normalize_observation=True, quiet=True, **extra)
    runs = [proximo.train(Mazes(LIMITS, *kind), steps=384, out=tmp_path / name, **settings) for name in ("a", "b")]
    for late in all_of(runs[1].folder)[2:]:
        shutil.rmtree(late)
    proximo.resume(runs[1].folder, env=Mazes(LIMITS, *kind), quiet=True)
    assert len(all_of(runs[0].folder)) == 5
    for one, other in zip(*(all_of(run.folder) for run in runs), strict=True):
        for file in ("model.safetensors", "state.safetensors"):
            assert (one / file).read_bytes() == (other / file).read_bytes(), one
    agent, one = proximo.load(runs[0].folder), Maze(5, *kind)
    assert one.action_space.contains(agent.act(one.reset()[0]))


def test_a_cue_is_remembered_in_tensors_too(tmp_path: Path) -> None:
    settings: dict[str, Any] = dict(horizon=32, envs=32, epochs=4, minibatches=4, lr=3e-3, gamma=0.95, hidden=(32,))
    run = proximo.train(
        Cues(32), steps=20_480, memory="gru", memory_size=32, **settings, quiet=True, out=tmp_path / "r"
    )
    assert run.metrics["return_mean"] >= 0.9  # 0.5 without a memory


class Odd(Mazes):
    """A maze that shows something else from its step number `late` on."""

    def __init__(self, late: int, spoil: Any, masked: bool = True) -> None:
        super().__init__(LIMITS, True, masked, False)
        self.late, self.spoil, self.taken = late, spoil, 0

    def step(self, action: Tensor, noise: Tensor) -> Transition:
        self.taken += 1
        made = super().step(action, noise)
        return made if self.taken < self.late else self.spoil(made)


class Wide(Mazes):
    """A maze that shows one of 600 besides, which another number takes the place of from a step on, or at its reset."""

    wrong: Tensor
    taken: Tensor

    def __init__(self, late: int, wrong: int) -> None:
        super().__init__(LIMITS, True, False, False)
        self.single_observation_space = spaces.Dict({**self.single_observation_space, "many": spaces.Discrete(600)})  # type: ignore[dict-item]
        self.late = late
        self.register_buffer("wrong", torch.tensor(wrong))
        self.register_buffer("taken", torch.zeros((), dtype=torch.int64))

    def seen(self, p: Tensor, t: Tensor, k: Tensor) -> Any:
        many = torch.where(self.taken >= self.late, self.wrong, 599).expand(len(p)).clone()
        return super().seen(p, t, k) | {"many": many}

    def step(self, action: Tensor, noise: Tensor) -> Transition:
        self.taken.add_(1)
        return super().step(action, noise)


@pytest.mark.parametrize(("late", "wrong"), [(0, 600), (0, -1), (30, 600), (30, -3)])
def test_one_of_many_that_is_not_there_is_told(late: int, wrong: int, tmp_path: Path) -> None:
    """Where choices are embedded, not one-hot: at the reset, and after a collection whose update is kept."""
    settings: dict[str, Any] = dict(horizon=HORIZON, envs=4, minibatches=1, quiet=True, checkpoint_every=96)
    step = late - HORIZON - 1 if late else 0  # lane 0 is cut after every step
    words = rf"observation/many = {wrong}, which is not in Discrete\(600\), in lane 0 at step {step} of"
    with pytest.raises(proximo.EnvFailure, match=words):
        proximo.train(Wide(late, wrong), steps=384, out=tmp_path / "run", compile="off", **settings)
    assert len(all_of(tmp_path / "run")) == (2 if late else 1)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("wrong", [600, -3])
def test_one_of_many_that_is_not_there_is_told_by_a_graph_too(wrong: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proximo.sources.tensors.UNROLLED", 1)
    env = Wide(30, wrong)
    policy = ActorCritic(env.single_observation_space, env.single_action_space, Network(hidden=(8,)))
    with compiling(True), pytest.raises(proximo.EnvFailure, match=rf"observation/many = {wrong}, which is not in"):
        collected(TensorSource(lambda seed: env, HORIZON), policy, 2)


def spoiled(path: tuple[Any, ...], value: Any, lane: int = 2, part: str = "observation") -> Any:
    """A step whose observation has another number in a lane."""

    def spoil(made: Transition) -> Transition:
        leaf = getattr(made, part)
        for key in path:
            leaf = leaf[key]
        leaf[lane] = value
        return made

    return spoil


def with_numbers(observation: Any) -> Any:
    return {**observation, MASK: observation[MASK].float()}


PLACE, NUMBER = ("inner", 0), ("inner", 1)
FAULTS: dict[str, tuple[Any, str]] = {
    "mask": (spoiled((MASK,), False), "no action is allowed in lane 2 at step 5 of the rollout: its mask leaves"),
    "additive mask": (
        lambda made: spoiled((MASK,), -1e9)(made._replace(observation=with_numbers(made.observation))),
        r"observation/action_mask\[0\] = -1000000000.0, which is neither 0 nor 1, in lane 2 at step 5",
    ),
    "choice": (
        spoiled(PLACE, 4),
        r"observation/inner/0 = 4, which is not in Discrete\(3, start=1\), in lane 2 at step 5",
    ),
    "low": (spoiled(PLACE, 0), r"observation/inner/0 = 0, which is not in Discrete"),
    "nan": (spoiled(NUMBER, np.nan), r"observation/inner/1\[0\] = nan in lane 2 at step 5 of the rollout"),
    "final": (spoiled(NUMBER, np.inf, 0, "final"), r"final observation/inner/1\[0\] = inf in lane 0 at step 4 "),
    "final choice": (spoiled(PLACE, -7, 0, "final"), "final observation/inner/0 = -7, which is not in"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_is_told_after_the_collection(fault: str, tmp_path: Path) -> None:
    spoil, words = FAULTS[fault]
    kind = proximo.NonFiniteError if fault in ("nan", "final") else proximo.EnvFailure
    settings: dict[str, Any] = dict(horizon=HORIZON, envs=4, minibatches=1, quiet=True, compile="off")
    with pytest.raises(kind, match=words):
        proximo.train(Odd(5, spoil), steps=192, out=tmp_path / "run", **settings)


def test_what_was_shown_at_an_end_that_nobody_values_may_be_anything() -> None:
    def blown_up(made: Transition) -> Transition:
        made.final["inner"][1][made.terminated] = torch.nan
        made.final["inner"][0][made.terminated] = 9
        return made

    policy, env = policy_for((True, False, False), {}), Odd(1, blown_up, masked=False)
    env.limits.fill_(50)
    nn.init.constant_(policy.actor[-1].bias[2:], 9)  # always to the right
    [(batch, _)] = collected(TensorSource(lambda seed: env, HORIZON), policy, 1)
    assert batch.terminated.any()
    assert batch.next_value.isfinite().all()


class Camera:
    """A simulator with rsl_rl's interface whose group of observations is a mapping itself, with an image."""

    num_envs, num_actions = 3, 2

    def __init__(self) -> None:
        self.t = torch.zeros(3, 1)

    def get_observations(self) -> Any:
        picture = self.t.to(torch.uint8).reshape(3, 1, 1, 1).expand(3, 12, 12, 1)
        return {"policy": {"picture": picture, "joints": self.t}, "critic": torch.zeros(3, 9)}

    def step(self, actions: Tensor) -> tuple[Any, Tensor, Tensor, dict[str, Any]]:
        self.t += 1
        late = self.t[:, 0] == 5
        final = tree_map(torch.clone, self.get_observations()["policy"])
        self.t[late] = 0
        return self.get_observations(), torch.ones(3), late, {"time_outs": late, "final_obs": {"policy": final}}


def test_a_group_may_be_a_mapping_with_images(tmp_path: Path) -> None:
    env = VecEnvLanes(Camera())
    assert isinstance(env, TensorEnv)
    assert env.single_observation_space["picture"] == spaces.Box(0, 255, (12, 12, 1), np.uint8)  # type: ignore[index]
    source = TensorSource(lambda seed: env, 16)
    source.restart(0)
    space = env.single_observation_space
    batch = source.collect(ActorCritic(space, env.single_action_space, Network(memory="gru", hidden=(8,))))
    assert batch.observation["picture"].dtype is torch.uint8
    assert batch.observation["joints"][:, 0, 0].tolist() == [t % 5 for t in range(16)]
    assert torch.equal(batch.observation["picture"][..., 0, 0, 0], batch.observation["joints"][..., 0].byte())
    run = proximo.train(env, steps=96, envs=3, horizon=16, minibatches=1, quiet=True, out=tmp_path / "run")
    assert run.agent.act({"picture": np.zeros((12, 12, 1), np.uint8), "joints": [0.0]}).shape == (2,)
