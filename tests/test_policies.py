"""Policies that see anything, act in any space, know what is forbidden, and remember."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from torch import Tensor

import proximo
from proximo.algorithms import ALGORITHMS
from proximo.batch import Batch, leaves_of, tree_map
from proximo.errors import CheckpointError, ConfigError, EnvFailure, UnsupportedSpace
from proximo.models.actor_critic import ActorCritic
from proximo.models.frames import Frames
from proximo.models.memory import GRU
from proximo.models.network import Network
from proximo.policy import blank
from proximo.run import session
from proximo.run.checkpoint import all_of
from proximo.run.config import resolved
from proximo.run.evaluate import evaluate
from proximo.run.folder import read_rows
from proximo.run.machine import choose_device, computing
from proximo.run.spaces import space_from_json, space_to_json
from proximo.sources.envs import EnvSource
from proximo.sources.masks import in_a_row
from tests.test_suite import QUIET, SMALL
from tests.toys import Cue, Cues, Everything, Masked, MaskedParts, Recall, Toy

MEMORIES: dict[str, dict[str, Any]] = {
    "lstm": dict(memory="lstm"),
    "gru, separate": dict(memory="gru", trunk="separate"),
    "transformer": dict(memory="transformer", memory_window=5),
    "stack": dict(frame_stack=4),
    "stack of a gru, separate": dict(frame_stack=3, memory="gru", trunk="separate"),
}
MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED]


class Truncated(Toy):
    """Toy, cut instead of ended, after as many steps as it is told; continuous actions."""

    def __init__(self, length: int) -> None:
        super().__init__(gym.spaces.Box(-1, 1, (2,), np.float32), length)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observation, reward, over, _, info = super().step(action)
        return observation, reward, False, over, info


class Watched(ActorCritic):
    """A policy whose noise can be looked at."""

    def noise(self, *shape: int) -> Tensor:
        self.drawn = super().noise(*shape)
        return self.drawn


def collected(network: Network, mode: AutoresetMode, count: int = 3) -> tuple[Watched, list[tuple[Batch, Tensor]]]:
    """Collections of 24 rows, in lanes whose episodes are cut after 1, 3, 7 and 50 steps, and their noise."""
    torch.manual_seed(0)
    lengths = (1, 3, 7, 50)
    source = EnvSource(lambda seed: SyncVectorEnv([partial(Truncated, n) for n in lengths], autoreset_mode=mode), 24)
    source.restart(5)
    policy = Watched(gym.spaces.Box(-1, 1, (5,)), gym.spaces.Box(-1, 1, (2,)), network)
    found = [(source.collect(policy), policy.drawn) for _ in range(count)]
    source.close()
    return policy, found


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("sequence", [24, 6])
def test_whole_lanes_evaluate_to_what_was_chosen_step_by_step(memory: str, mode: AutoresetMode, sequence: int) -> None:
    """The same noise draws the same actions from the distributions of the whole batch, and of its sequences."""
    network = Network(**MEMORIES[memory], memory_size=8, hidden=(8,), sequence=sequence)
    policy, found = collected(network, mode)
    for batch, noise in found:
        for part, drawn in ((batch, noise), (batch.units(), Batch(x=noise, memory=batch.memory).sequences().x)):
            with torch.no_grad():
                opinion = policy.evaluate(part)
            torch.testing.assert_close(opinion.distribution.sample(drawn), part.action, rtol=0, atol=1e-5)
            torch.testing.assert_close(opinion.logp, part.logp, rtol=0, atol=1e-5)
            torch.testing.assert_close(opinion.value, part.value, rtol=0, atol=1e-5)


@pytest.mark.parametrize("memory", MEMORIES)
def test_what_follows_is_valued_with_what_was_remembered(memory: str) -> None:
    """The true next observation's value, after an episode was cut too: the same in every mode of reset."""
    network = Network(**MEMORIES[memory], memory_size=8, hidden=(8,), sequence=12)
    cuts = list[list[Tensor]]()
    for mode in MODES:
        policy, found = collected(network, mode, 1)
        batch, _ = found[0]
        followed = [follow(policy, batch, lane) for lane in range(3)]
        assert followed == ([12, 6, 3] if mode == AutoresetMode.NEXT_STEP else [0, 0, 0])
        cuts.append([batch.next_value[batch.truncated[:, lane], lane][:3] for lane in range(3)])
    for others in cuts[1:]:
        torch.testing.assert_close(others, cuts[0], rtol=0, atol=1e-5)
    assert all(len(values.unique()) == 3 for values in cuts[0])


def follow(policy: ActorCritic, batch: Batch, lane: int) -> int:
    """Walk along one lane by single steps; each row's next value is the next one's, without a new start.

    That is a final observation's too, where it is the next row's. How many of these there were is returned.
    """
    memory, cuts = policy.initial(1), 0
    for t in range(len(batch.mask) - 1):
        if not batch.mask[t, lane]:
            continue
        row, start = batch.observation[t, lane].unsqueeze(0), batch.start[t, lane].view(1)
        assert policy.value(row, memory, start).item() == pytest.approx(batch.value[t, lane].item(), abs=1e-5)
        _, memory = policy.act(row, None, memory, start)
        if not batch.start[t + 1, lane]:
            following = batch.observation[t + 1, lane].unsqueeze(0)
            value = policy.value(following, memory, torch.zeros(1, dtype=torch.bool))
            assert value.item() == pytest.approx(batch.next_value[t, lane].item(), abs=1e-5)
            cuts += int(batch.truncated[t, lane])
    return cuts


@pytest.mark.parametrize("memory", MEMORIES)
def test_the_past_is_forgotten_where_an_episode_begins(memory: str) -> None:
    network = Network(**MEMORIES[memory], memory_size=8, hidden=(8,))
    policy = ActorCritic(gym.spaces.Box(-1, 1, (5,)), gym.spaces.Discrete(2), network)
    observation = torch.randn(2, 5)
    _, past = policy.act(torch.randn(2, 5), None, policy.initial(2), torch.ones(2, dtype=torch.bool))
    start = torch.tensor([True, False])
    values = policy.value(observation, past, start)
    fresh = policy.value(observation, policy.initial(2), torch.ones(2, dtype=torch.bool))
    assert values[0] == fresh[0]
    assert (values[1] - fresh[1]).abs() > 1e-5


@pytest.mark.parametrize("memory", ["none", "lstm", "gru", "transformer", "stack"])
def test_a_cue_is_remembered_by_those_who_can(memory: Any, tmp_path: Path) -> None:
    settings = dict(horizon=32, envs=16, epochs=4, minibatches=4, lr=3e-3, memory_size=32, hidden=(32,), gamma=0.95)
    kind: dict[str, Any] = dict(frame_stack=5) if memory == "stack" else dict(memory=memory)
    run = proximo.train(
        Cue, steps=30_000, **settings, **kind, quiet=True, eval_every=0, eval_episodes=200, out=tmp_path / "run"
    )
    assert run.score is not None
    if memory == "none":
        assert 0.35 < run.score.mean < 0.65
    else:
        assert run.score.mean >= 0.95


class Switches(gym.Env):
    """A Box of True and False; the first says which action is worth 1."""

    observation_space = gym.spaces.Box(0, 1, (3,), bool)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.seen = self.np_random.random(3) < 0.5
        return self.seen, {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward = float(self.seen[0] == action)
        return self.reset()[0], reward, True, False, {}


@pytest.mark.parametrize("normalize", [False, True])
def test_boxes_of_switches_are_learned_from(normalize: bool, tmp_path: Path) -> None:
    settings: dict[str, Any] = dict(QUIET, horizon=64, envs=4, lr=1e-2, normalize_observation=normalize)
    run = proximo.train(Switches, steps=4096, out=tmp_path / "run", **settings)
    agent = proximo.load(run.folder)
    assert agent.observation_space == Switches.observation_space
    assert agent.act(np.eye(3, dtype=bool)).tolist() == [1, 0, 0]


def test_boxes_of_bools_are_acted_in_as_choices_of_the_nearer() -> None:
    head = proximo.head_for(gym.spaces.Box(0, 1, (2,), bool))
    acted = head.to_env(np.array([[-0.9, 0.9], [-0.1, 0.1]], np.float32))
    assert acted.tolist() == [[False, True], [False, True]]
    assert acted.dtype == bool


def test_a_gpu_is_for_one_process_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    config = resolved("a world", "ppo", "discrete", dict(hidden=(512,)))
    assert choose_device(config, "a world")[0] == "cuda"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert choose_device(config, "a world") == ("cpu", "there is no GPU for each of 2 processes")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert choose_device(config, "a world")[0] == "cuda"


def test_a_gpus_convolutions_repeat_themselves() -> None:
    config, cudnn = resolved("a world", "ppo", "discrete", dict(device="cuda")), torch.backends.cudnn
    before = cudnn.deterministic, cudnn.allow_tf32
    with computing(config):
        assert (cudnn.deterministic, cudnn.allow_tf32) == (True, False)
    assert (cudnn.deterministic, cudnn.allow_tf32) == before


class Looks(gym.Env):
    """A picture."""

    observation_space, action_space = gym.spaces.Box(0, 255, (36, 36, 3), np.uint8), gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        return np.zeros((36, 36, 3), np.uint8), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return self.reset()[0], 0.0, True, False, {}


def test_a_run_that_sees_pictures_asks_for_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    config = resolved("Looks", "ppo", "discrete", dict(envs=2))
    found, _, notes = session.fitted(Looks, config)
    assert found.run.device == "cuda"
    assert "device cuda: an image network gains by it" in notes


@pytest.mark.parametrize("shown", [Looks.observation_space, gym.spaces.Box(-1, 1, (3,))], ids=["pictures", "numbers"])
def test_statistics_are_taken_only_where_some_are_kept(shown: gym.Space, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stack of frames would be made for nothing."""
    policy = ActorCritic(shown, gym.spaces.Discrete(2), Network(frame_stack=2, normalize_observation=True, hidden=()))
    batch, made, frames = blank(policy, shown, 16, 2), [], Frames.__call__
    monkeypatch.setattr(Frames, "__call__", lambda *given: made.append(given) or frames(*given))
    policy.observe(batch)
    assert len(made) == int(shown is not Looks.observation_space)


@pytest.mark.parametrize(
    ("settings", "device"),
    [
        (dict(images="nature"), "cuda"),
        (dict(images="numbers"), "cpu"),
        (dict(images="numbers", hidden=(64, 512)), "cuda"),
        (dict(images="numbers", memory="lstm", memory_size=512), "cuda"),
        (dict(images="numbers", memory_size=512), "cpu"),
    ],
)
def test_a_gpu_is_taken_where_a_network_gains_by_it(
    settings: dict[str, Any], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    shown = gym.spaces.Dict(picture=gym.spaces.Box(0, 255, (84, 84, 4), np.uint8), speed=gym.spaces.Box(0, 1, (2,)))
    spaces = {"observation": space_to_json(shown), "action": space_to_json(gym.spaces.Discrete(2))}
    config = resolved("a world", "ppo", "discrete", dict(hidden=()) | settings)
    assert choose_device(replace(config, spaces=spaces), "a world")[0] == device


@pytest.mark.parametrize(
    ("memory", "env"),
    [("lstm", lambda: Cue), ("gru", lambda: Cue), ("transformer", lambda: Cue), ("gru", lambda: Cues(4))],
    ids=["lstm", "gru", "transformer", "gru, tensors"],
)
@pytest.mark.parametrize("algo", ALGORITHMS)
def test_every_algorithm_trains_with_a_memory_and_resumes_exactly(
    algo: str, memory: str, env: Any, tmp_path: Path
) -> None:
    settings = dict(memory=memory, memory_size=8, sequence=8, hidden=(8,), checkpoint_every=256, **QUIET, **SMALL[algo])
    whole = proximo.train(env(), algo, steps=768, out=tmp_path / "whole", **settings)
    broken = proximo.train(env(), algo, steps=768, out=tmp_path / "broken", **settings)
    same_after_resuming(whole, broken, env())
    first = proximo.load(all_of(whole.folder)[0]).policy.state_dict()
    still = [name for name, x in whole.policy.named_parameters() if torch.equal(x, first[name])]
    assert not still
    assert any("core" in name for name in first)


slow = pytest.mark.slow


@pytest.mark.parametrize("memory", ["lstm", pytest.param("gru", marks=slow), pytest.param("transformer", marks=slow)])
@pytest.mark.parametrize("algo", ALGORITHMS)
def test_every_algorithm_learns_what_only_a_memory_can(algo: str, memory: str, tmp_path: Path) -> None:
    settings = SMALL[algo] | QUIET | dict(memory=memory, memory_size=32, hidden=(32,), gamma=0.95, envs=16)
    run = proximo.train(Cue, algo, steps=30_000, out=tmp_path / "run", **settings)
    assert run.score is not None
    assert run.score.mean >= 0.95  # 0.5 without a memory


@pytest.mark.parametrize(("algo", "most"), [("trpo", 0.0101), ("natural", 0.02)])  # a natural step has no search
def test_fitting_the_value_leaves_the_trust_region_alone(algo: str, most: float, tmp_path: Path) -> None:
    settings = SMALL[algo] | dict(delta=0.01, memory="gru", memory_size=8, sequence=8, max_kl=1e6, lr=0.01)
    run = proximo.train(Cue, algo, steps=2_560, out=tmp_path / "run", **settings, **QUIET)
    changes = [row["kl"] for row in read_rows(run.folder / "drift.jsonl")]
    assert len(changes) >= 5
    assert 1e-4 < max(changes) < most


@pytest.mark.parametrize("algo", ["trpo", "natural", "trpo_reuse"])
def test_a_trust_region_has_a_trunk_of_its_own(algo: str, tmp_path: Path) -> None:
    settings = SMALL[algo] | dict(memory="gru", memory_size=8, sequence=8)
    run = proximo.train(Cue, algo, steps=256, out=tmp_path / "run", **settings, **QUIET)
    assert run.policy.critic_trunk is not None
    with pytest.raises(ConfigError, match=r"trunk is shared: .* give --trunk separate"):
        proximo.train(Cue, algo, steps=256, trunk="shared", out=tmp_path / "other", **settings, **QUIET)


def same_after_resuming(whole: proximo.Run, broken: proximo.Run, env: Any) -> None:
    for late in all_of(broken.folder)[2:]:
        shutil.rmtree(late)
    proximo.resume(broken.folder, env=env, quiet=True)
    assert len(all_of(whole.folder)) > 2
    for one, other in zip(all_of(whole.folder), all_of(broken.folder), strict=True):
        for file in ("model.safetensors", "state.safetensors"):
            assert (one / file).read_bytes() == (other / file).read_bytes()


@pytest.mark.parametrize("extra", [{}, dict(memory="lstm", sequence=8), dict(trunk="separate", distribution="beta")])
@pytest.mark.parametrize("backend", ["sync", "async"])
def test_everything_at_once(extra: dict[str, Any], backend: str, tmp_path: Path) -> None:
    """A tree of a picture, a text, a choice and numbers; a Dict of actions: trains, resumes, loads and acts."""
    settings = dict(envs=2, horizon=16, minibatches=2, epochs=2, hidden=(16,), normalize_observation=True)
    settings |= dict(memory_size=8, checkpoint_every=32, eval_every=0, eval_episodes=1, quiet=True, backend=backend)
    runs = [proximo.train(Everything, steps=96, out=tmp_path / name, **settings, **extra) for name in ("a", "b")]
    same_after_resuming(*runs, Everything)
    agent, env = proximo.load(runs[0].folder), Everything()
    observation, _ = env.reset(seed=1)
    for _ in range(3):
        action = agent.act(observation)
        assert env.action_space.contains(action)
        np.testing.assert_allclose(action["push"], runs[0].agent.act(observation)["push"], rtol=1e-5, atol=1e-6)
        observation = env.step(action)[0]


@pytest.mark.parametrize("told", ["picture", "word"])
def test_pictures_and_words_are_learned_from(told: str, tmp_path: Path) -> None:
    """Each for itself: the other says anything."""
    settings = dict(envs=4, horizon=64, minibatches=4, epochs=4, lr=1e-3, hidden=(32,), quiet=True, eval_every=0)
    env = partial(Everything, told)
    run = proximo.train(env, steps=8192, out=tmp_path / "run", **settings, eval_episodes=20)
    assert run.score is not None
    assert run.score.mean >= 7.5  # of 8


def test_pictures_are_kept_as_bytes() -> None:
    source = EnvSource(lambda seed: SyncVectorEnv([Everything] * 2), 8)
    source.restart(0)
    policy = ActorCritic(Everything.observation_space, Everything.action_space, Network())
    batch = source.collect(policy)
    source.close()
    assert batch.observation["picture"].dtype == torch.uint8
    assert batch.observation["picture"].shape == (8, 2, 16, 16, 3)
    assert batch.observation["inner"][1].dtype == torch.int64
    assert batch.units().observation["picture"].data_ptr() == batch.observation["picture"].data_ptr()  # no copy


@pytest.mark.parametrize("says", ["info", "method", "observation"])
@pytest.mark.parametrize("backend", ["sync", "async"])
def test_forbidden_actions_are_never_taken(says: str, backend: str, tmp_path: Path) -> None:
    """The environment raises for one; the best of the allowed is found."""
    env = partial(Masked, says)
    settings = dict(envs=8, horizon=32, minibatches=4, epochs=4, lr=3e-3, quiet=True, eval_every=0)
    run = proximo.train(env, steps=20_480, out=tmp_path / "run", **settings, eval_episodes=20, backend=backend)
    assert run.score is not None
    assert run.score.mean >= 8  # of 10; drawn blindly from the allowed ones 3.3


@pytest.mark.parametrize("row", [False, True])
@pytest.mark.parametrize("says", ["info", "method", "observation"])
def test_choices_within_parts_have_masks(says: str, row: bool, tmp_path: Path) -> None:
    """The environment raises for what is forbidden, in training as in evaluation and as an agent of its own."""
    env = partial(MaskedParts, says, row)
    proximo.train(env, steps=128, out=tmp_path / "run", **QUIET | dict(eval_episodes=2), **SMALL["ppo"])
    assert len(proximo.evaluate(tmp_path / "run", env=env, episodes=2).lengths) == 2
    seen = {"observation" if says != "observation" else "seen": np.zeros(2, np.float32)}
    agent, mask = proximo.load(tmp_path / "run"), np.array([0, 0, 0, 1, 1, 0, 0, 1, 0], np.int8)
    action = agent.act({**seen, "action_mask": mask}, deterministic=False)
    assert (action["go"], action["inner"][0].tolist()) == (5, [0, 1])


def test_a_wrappers_masks_are_heeded(tmp_path: Path) -> None:
    class Masker(gym.Wrapper):
        def action_masks(self) -> np.ndarray:
            assert isinstance(self.env, Masked)
            return self.env.mask.astype(bool)

    env = lambda: gym.wrappers.TimeLimit(Masker(Masked("nowhere")), 5)  # noqa: E731
    proximo.train(env, steps=128, out=tmp_path / "run", **QUIET | dict(eval_episodes=2), **SMALL["ppo"])
    agent, seen = proximo.load(tmp_path / "run"), np.zeros(12, np.float32)
    assert agent.act({"observation": seen, "action_mask": np.eye(12)[7]}) == 7


class Says(Toy):
    """A toy with something in info, at first or later on, or by a method."""

    def __init__(self, action: gym.Space, first: Any = None, late: Any = None, method: Any = None) -> None:
        super().__init__(action)
        self.first, self.late = first, late
        if method is not None:
            self.action_masks = method

    def reset(self, **options: Any) -> Any:
        return super().reset(**options)[0], {} if self.first is None else {"action_mask": self.first}

    def step(self, action: Any) -> Any:
        info = {} if self.late is None or self.left > 15 else {"action_mask": self.late}
        return *super().step(action)[:4], {**info, **({} if self.first is None else {"action_mask": self.first})}


def broken() -> Any:
    raise RuntimeError("no masks today")


DISCRETE, SWITCHES, BOX = gym.spaces.Discrete(3), gym.spaces.MultiBinary(3), gym.spaces.Box(-1, 1, (2,))
PAIR, ONES = gym.spaces.Tuple([DISCRETE, BOX]), np.ones(3, np.int8)
NO_MASKS = "Discrete and MultiDiscrete have masks"
SAID: dict[str, tuple[Any, type[Exception], str]] = {
    "switches": (partial(Says, SWITCHES, ONES), UnsupportedSpace, rf"says by info\[.* MultiBinary\(3\): {NO_MASKS}"),
    "a box": (partial(Says, BOX, method=lambda: ONES), UnsupportedSpace, rf"says by action_masks\(\).*{NO_MASKS}"),
    "late": (partial(Says, DISCRETE, late=ONES), EnvFailure, r"after 6 steps.*say it from the first reset on"),
    "additive": (partial(Says, DISCRETE, np.array([0, -1e9, 0])), EnvFailure, "must say of 3 .* 1 or 0 for each"),
    "a wrong part": (partial(Says, PAIR, (np.ones(2), None)), EnvFailure, r"\[0\] is .* say of 3 actions"),
    "a stranger": (partial(Says, gym.spaces.Dict(a=DISCRETE), {"b": ONES}), EnvFailure, "has 'b', a part that"),
    "a method that fails": (partial(Says, DISCRETE, method=broken), EnvFailure, "raised RuntimeError: no masks today"),
}


@pytest.mark.parametrize("case", SAID)
def test_no_mask_is_ignored(case: str, tmp_path: Path) -> None:
    env, kind, words = SAID[case]
    with pytest.raises(kind, match=words) as told:
        proximo.train(env, steps=256, out=tmp_path / "run", **QUIET, **SMALL["ppo"])
    assert "maker" not in str(told.value)


def test_lanes_that_show_numbers_for_masks_are_refused() -> None:
    class Additive(gym.vector.VectorObservationWrapper):
        def observations(self, observations: Any) -> Any:
            return {**observations, "action_mask": (observations["action_mask"] - 1) * 1e9}

    source = EnvSource(lambda seed: Additive(SyncVectorEnv([partial(Masked, "observation")] * 2)), 4)
    with pytest.raises(EnvFailure, match=r"-1000000000\.0 at /action_mask, which is neither 0 nor 1"):
        source.restart(0)


@pytest.mark.parametrize(
    ("seen", "kind", "words"),
    [
        ({"action_mask": np.zeros(12)}, EnvFailure, "no action is allowed: the mask leaves a choice without"),
        ({"action_mask": np.full(12, -1e9)}, ConfigError, "neither 0 nor 1"),
        ({}, ConfigError, r"no /action_mask; .* \{'seen': \(12,\), 'action_mask': \(12,\)\}"),
    ],
)
def test_an_agent_is_told_what_is_allowed(seen: dict[str, Any], kind: type[Exception], words: str) -> None:
    env = Masked("observation")
    spaces = env.observation_space, env.action_space
    agent = proximo.Agent(ActorCritic(*spaces, Network(hidden=(8,))), *spaces)
    with pytest.raises(kind, match=words):
        agent.act({"seen": np.zeros(12), **seen})
    rows = {name: np.stack([x, np.ones(12)]) for name, x in {"seen": np.zeros(12), **seen}.items()}
    with pytest.raises(kind, match=words):
        agent.act(rows)


@pytest.mark.parametrize("place", ["observation", "info", "method"])
def test_an_agent_takes_a_mask_as_the_environment_says_it(place: str, tmp_path: Path) -> None:
    """Part by part, like the action; the environment raises where a forbidden one is taken."""
    run = proximo.train(partial(MaskedParts, place), steps=128, out=tmp_path / "run", **QUIET, **SMALL["ppo"])
    agent, env = proximo.load(run.folder), MaskedParts(place)
    seen, info = env.reset(seed=0)
    for _ in range(30):
        if place != "observation":
            seen = {"observation": seen, "action_mask": info["action_mask"] if place == "info" else env.action_masks()}
        seen, _, over, cut, info = env.step(agent.act(seen, deterministic=False))
        if over or cut:
            seen, info = env.reset()
    if place == "observation":
        with pytest.raises(ConfigError, match=r"/action_mask\['go'\] is .*: it must say of 4 actions"):
            agent.act(seen | {"action_mask": dict(go=np.ones(3))})


NESTED = gym.spaces.Tuple([gym.spaces.MultiDiscrete([2, 3]), gym.spaces.Discrete(2)])


@pytest.mark.parametrize("mask", [[[[0, 1], [0, 0, 1]], [0, 1]], [None, [0, 1]], [[0, 1, 0, 0, 1], None], [None, None]])
def test_an_agent_takes_lists_within_lists(mask: list[Any]) -> None:
    seen = gym.spaces.Dict(seen=BOX, action_mask=gym.spaces.MultiBinary(7))
    agent = proximo.Agent(ActorCritic(seen, NESTED, Network(hidden=(8,))), seen, NESTED)
    for _ in range(5):
        action = agent.act({"seen": np.zeros(BOX.shape, np.float32), "action_mask": mask}, deterministic=False)
        assert mask[0] is None or action[0].tolist() == [1, 2]
        assert mask[1] is None or action[1] == 1


@pytest.mark.parametrize("options", [[2, 3], [2, 2]])
def test_an_agent_takes_a_list_of_masks_choice_by_choice(options: list[int]) -> None:
    seen = gym.spaces.Dict(seen=BOX, action_mask=gym.spaces.MultiBinary(sum(options)))
    spaces = seen, gym.spaces.MultiDiscrete(options)
    agent = proximo.Agent(ActorCritic(*spaces, Network(hidden=(8,))), *spaces)
    mask = [np.eye(n, dtype=np.int8)[-1] for n in options]
    last = [n - 1 for n in options]
    numbers = {"seen": np.zeros(BOX.shape, np.float32)}
    assert agent.act({**numbers, "action_mask": mask}, deterministic=False).tolist() == last
    row = np.concatenate(mask)
    assert agent.act({**numbers, "action_mask": row.tolist()}, deterministic=False).tolist() == last
    both = {"seen": np.zeros((2, *BOX.shape), np.float32), "action_mask": [row, row]}
    assert agent.act(both, deterministic=False).tolist() == [last, last]


class ManyMasked(gym.vector.SyncVectorEnv):
    """A vector environment of its own, which an id may name beside its single one."""

    def __init__(self, num_envs: int, **_: Any) -> None:
        super().__init__([partial(Masked, "info")] * num_envs)


def test_masks_of_an_id_with_a_vector_environment_of_its_own_are_heeded(tmp_path: Path) -> None:
    gym.register("ManyMasked-v0", partial(Masked, "info"), vector_entry_point=ManyMasked)
    try:
        run = proximo.train("ManyMasked-v0", steps=128, out=tmp_path / "run", **QUIET, **SMALL["ppo"])
    finally:
        gym.registry.pop("ManyMasked-v0")
    assert run.step > 0
    assert "action_mask" in run.agent.observation_space.spaces


def test_an_evaluation_in_which_nothing_is_allowed_is_told(tmp_path: Path) -> None:
    run = proximo.train(Masked, steps=128, out=tmp_path / "run", **QUIET | dict(eval_episodes=1), **SMALL["ppo"])
    with pytest.raises(EnvFailure, match="no action is allowed"):
        proximo.evaluate(run.folder, env=partial(Masked, none=4), episodes=1)


def test_a_mask_that_allows_nothing_is_told(tmp_path: Path) -> None:
    with pytest.raises(EnvFailure, match="no action is allowed in lane 0 at step 4"):
        proximo.train(partial(Masked, none=4), steps=128, out=tmp_path / "run", backend="sync", **QUIET, **SMALL["ppo"])


def test_a_mask_of_another_size_is_told(tmp_path: Path) -> None:
    class Wrong(Masked):
        def _seen(self) -> tuple[Any, dict[str, Any]]:
            return super()._seen()[0], {"action_mask": np.ones(5, np.int8)}

    with pytest.raises(EnvFailure, match="it must say of 12 actions which may be taken"):
        proximo.train(Wrong, steps=128, out=tmp_path / "run", **QUIET, **SMALL["ppo"])


WRONG_PARTS = {
    r"^\['move'\]\[1\] is \[1, 1\]: it must say of 3 actions": {"move": ([1, 0], [1, 1])},
    r"^ has 'mve', a part that the action has not": {"mve": ([1, 0], [1, 1, 0])},
    r"^\['jump'\] is \[2, 0\]: it must say of 2 actions": {"jump": [2, 0]},
}


@pytest.mark.parametrize("words", WRONG_PARTS)
def test_a_wrong_part_of_a_mask_is_named(words: str) -> None:
    move = gym.spaces.Tuple((gym.spaces.Discrete(2), gym.spaces.Discrete(3)))
    with pytest.raises(ValueError, match=words):
        in_a_row(WRONG_PARTS[words], gym.spaces.Dict(move=move, jump=gym.spaces.Discrete(2)))


def test_collected_log_probabilities_know_the_mask() -> None:
    source = EnvSource(lambda seed: SyncVectorEnv([partial(Masked, "observation")] * 4), 16)
    source.restart(0)
    env = Masked("observation")
    policy = ActorCritic(env.observation_space, env.action_space, Network(hidden=(8,)))
    batch = source.collect(policy)
    source.close()
    allowed, live = batch.observation["action_mask"] != 0, batch.mask
    chosen = allowed.gather(-1, batch.action.unsqueeze(-1)).squeeze(-1)
    assert chosen[live].all()
    probabilities = policy.evaluate(batch).distribution.logp_all.exp()
    torch.testing.assert_close((probabilities * allowed).sum(-1)[live], torch.ones_like(batch.logp)[live])
    entropy = policy.evaluate(batch).distribution.entropy()[live]
    assert (entropy <= np.log(3) + 1e-5).all()


def test_the_agent_goes_on_from_what_it_remembers() -> None:
    network = Network(memory="lstm", memory_size=8, hidden=(8,))
    policy = ActorCritic(gym.spaces.Box(-1, 1, (2,)), gym.spaces.Box(-1, 1, (2,)), network)
    torch.nn.init.normal_(policy.actor[-1].weight)
    agent = proximo.Agent(policy, gym.spaces.Box(-1, 1, (2,)), gym.spaces.Box(-1, 1, (2,)))
    first, second = [0.5, -0.5], [0.1, 0.2]
    agent.act(first)
    after = agent.act(second)
    agent.reset()
    alone = agent.act(second)
    assert np.abs(after - alone).max() > 1e-6
    agent.act(first, start=True)
    np.testing.assert_allclose(agent.act(second), after, rtol=1e-6)
    assert len(leaves_of(tree_map(lambda x: x, agent.memory))) == 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(memory="lstm", sequence=5), "sequences of 5 steps do not divide a horizon of 32"),
        (dict(memory="lstm", sequence=32, minibatches=8), "8 minibatches do not divide 4 sequences"),
        (dict(frame_stack=0), "frame_stack is 0: it must be between 1 and 256"),
        (dict(frame_stack=4, sequence=5), "sequences of 5 steps do not divide a horizon of 32"),
        (dict(memory="lstm", memory_size=0), "size of the policy's memory is 0"),
        (dict(memory="hippocampus"), "memory is 'hippocampus'"),
    ],
)
def test_a_memory_that_cannot_be_is_refused(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        proximo.train(Cue, steps=1024, out=tmp_path / "run", **QUIET, **(SMALL["ppo"] | settings))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("brought", [dict(memory="gru", memory_size=8), dict(frame_stack=2), dict(core=GRU)])
def test_a_short_horizon_is_one_sequence_where_none_is_asked_for(brought: dict[str, Any], tmp_path: Path) -> None:
    settings = dict(horizon=5, steps=80, out=tmp_path / "run", **QUIET)
    with pytest.raises(ConfigError, match="sequences of 16 steps do not divide a horizon of 5"):
        proximo.train(Cue, "a2c", sequence=16, **settings, **brought)
    run = proximo.train(Cue, "a2c", **settings, **brought)
    assert run.config.network.sequence == run.policy.sequence == 5
    assert json.loads((run.folder / "config.json").read_text())["network"]["sequence"] == 5
    again = proximo.resume(run.folder, Cue, steps=120, quiet=True, **{k: v for k, v in brought.items() if k == "core"})
    assert again.policy.sequence == 5


class Listed(gym.Env):
    """A Tuple that comes as a list, as Gymnasium allows; episodes of three steps."""

    observation_space = gym.spaces.Tuple([gym.spaces.Box(-1, 1, (2,), np.float32), gym.spaces.Discrete(3)])
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.t = 0
        return [np.zeros(2, np.float32), 1], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return [np.zeros(2, np.float32), 2], 1.0, self.t == 3, False, {}


def test_a_tuple_that_comes_as_a_list_is_evaluated_as_it_is_learned_from(tmp_path: Path) -> None:
    run = proximo.train(Listed, steps=128, out=tmp_path / "run", **QUIET, **SMALL["ppo"])
    assert run.score is not None
    assert set(run.score.returns) == {3}


@pytest.mark.parametrize(
    ("observation", "words"),
    [
        (([1, 2],), "no /1"),
        (([1], 1), r"at /0 has shape \(1,\)"),
        ((np.zeros(2), [0, 1]), "not all one, or not all as many"),
        ((np.zeros(2), 3), "at /1 is none of Discrete"),
        (("x", 0), "at /0 is 'x'"),
        ((np.zeros((0, 2)), []), "an empty batch"),
    ],
)
def test_an_agent_tells_what_is_wrong_with_an_observation(observation: Any, words: str) -> None:
    policy = ActorCritic(Listed.observation_space, Listed.action_space, Network(hidden=(8,)))
    with pytest.raises(ConfigError, match=words):
        proximo.Agent(policy, Listed.observation_space, Listed.action_space).act(observation)


def test_choices_alone_are_held_to_a_bound(tmp_path: Path) -> None:
    """In float64, where the bound is near."""

    class Chosen(Listed):
        observation_space = gym.spaces.Discrete(3)

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            return super().reset()[0][1], {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            (_, seen), _, over, *rest = super().step(action)
            return seen, float(action), over, *rest

    run = proximo.train(Chosen, steps=1024, max_kl=1e-4, out=tmp_path / "run", **QUIET, **SMALL["ppo"])
    assert run.ledger is not None
    assert "were cut or undone" in " ".join(run.summary())


@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
@pytest.mark.parametrize("place", ["info", "method"])
def test_lanes_that_say_their_masks_apart_are_refused(place: str, kind: type, tmp_path: Path) -> None:
    lanes = kind([partial(Masked, place)] * 4)
    with closing(lanes), pytest.raises(ConfigError, match="pass a maker of single ones"):
        proximo.train(lanes, steps=128, out=tmp_path / "run", **QUIET, **SMALL["ppo"])


def test_lanes_that_say_their_masks_by_a_method_of_their_own_are_refused(tmp_path: Path) -> None:
    class Lanes(SyncVectorEnv):
        def action_masks(self) -> Any:
            return None

    with pytest.raises(ConfigError, match=r"these lanes have action_masks\(\)"):
        proximo.train(Lanes([Recall] * 4), steps=128, out=tmp_path / "run", **QUIET, **SMALL["ppo"])


@pytest.mark.parametrize("size", [1, 11])
def test_a_mask_that_fits_no_action_is_refused(size: int) -> None:
    space = gym.spaces.Dict(seen=gym.spaces.Box(0, 1, (2,)), action_mask=gym.spaces.MultiBinary(size))
    for action, words in (
        (gym.spaces.Discrete(12), "must be MultiBinary"),
        (gym.spaces.Box(-1, 1, (2,)), "have masks"),
    ):
        with pytest.raises(UnsupportedSpace, match=words):
            ActorCritic(space, action, Network())


def test_a_mask_of_parts_where_nobody_puts_it_in_a_row_is_refused() -> None:
    """In lanes that the caller made, in tensors or not."""
    mask = gym.spaces.Dict(a=gym.spaces.MultiBinary(3))
    space = gym.spaces.Dict(seen=gym.spaces.Box(0, 1, (2,)), action_mask=mask)
    with pytest.raises(UnsupportedSpace, match=r"must be MultiBinary\(3\), the options of all choices in a row"):
        ActorCritic(space, gym.spaces.Dict(a=gym.spaces.Discrete(3)), Network())


@pytest.mark.parametrize(
    "described",
    [
        {"kind": "box", "shape": [2], "dtype": "(1,2", "low": ["0"], "high": ["1"]},
        {"kind": "box", "shape": [2**25], "dtype": "float32", "low": ["0"], "high": ["1"]},
        {
            "kind": "tuple",
            "spaces": [{"kind": "box", "shape": [2**22], "dtype": "uint8", "low": ["0"], "high": ["9"]}] * 5,
        },
        {"kind": "multi_binary", "n": 10**12},
        {"kind": "text", "min": 0, "max": 10**12, "characters": "ab"},
        {"kind": "dict", "spaces": 5},
    ],
)
def test_a_described_space_takes_no_memory_before_it_is_known_to_be_one(described: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="describes no space"):
        space_from_json(described)


@pytest.mark.parametrize("extra", [{}, dict(memory="gru", trunk="separate"), dict(frame_stack=3)])
def test_neither_evaluation_nor_acting_changes_what_is_known_of_observations(
    extra: dict[str, Any], tmp_path: Path
) -> None:
    settings = SMALL["ppo"] | dict(
        normalize_observation=True, normalize_reward=True, memory_size=8, sequence=8, **extra
    )
    run = proximo.train(Cue, steps=256, out=tmp_path / "run", **settings, **QUIET | dict(eval_episodes=1))
    agent = run.agent
    before = {name: buffer.clone() for name, buffer in agent.policy.named_buffers()}
    assert any("moments" in name and "count" in name for name in before)
    agent.reset()
    for deterministic in (True, False):
        agent.act(np.full((7, 2), 9), deterministic)
    score = evaluate(agent, Cue, 5, seed=1)
    assert score is not None
    assert len(score.returns) == 5
    after = dict(agent.policy.named_buffers())
    assert before.keys() == after.keys()
    assert all(torch.equal(x, after[name]) for name, x in before.items())
    kept = {path: path.read_bytes() for path in run.folder.rglob("*.safetensors")}
    proximo.evaluate(run.folder, env=Cue, episodes=2)
    assert kept == {path: path.read_bytes() for path in run.folder.rglob("*.safetensors")}
