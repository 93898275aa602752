"""Atari and the other worlds of EnvPool: what is learned from, what is scored, what is made of options."""

from __future__ import annotations

import inspect
import json
import re
import shutil
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

import proximo
from proximo.algorithms import ALGORITHMS
from proximo.errors import ConfigError, MissingExtra, UnknownName
from proximo.models.actor_critic import ActorCritic
from proximo.models.network import Network
from proximo.presets import PRESETS, preset_for
from proximo.presets.screens import ALE_OPTIONS, POOL_OPTIONS, PROCGEN
from proximo.run import session
from proximo.run.checkpoint import all_of
from proximo.run.config import known_settings, resolved
from proximo.run.play import record_video
from proximo.sources.atari import LIVES, SIGNS, Fires, Games, fire_button, register_games, without
from proximo.sources.backends import lanes_for
from proximo.sources.envpool import alike, envpool, envpool_ids
from proximo.sources.envs import EnvSource
from proximo.sources.making import single
from proximo.sources.onelane import OneLane
from proximo.sources.options import options_from, said
from tests.test_suite import QUIET, SMALL
from tests.toys import Cue

LEARNING = dict(stack_num=1, episodic_life=True)
OPTIONS = {"ALE/Breakout-v5": LEARNING | dict(reward_clipping=True), "Breakout-v5": LEARNING | dict(reward_clip=True)}


class Lives(gym.vector.VectorEnv):
    """One lane of games of three lives: each life lasts two steps, worth 7 and −2; the row after an end is dead."""

    num_envs, metadata = 1, {"autoreset_mode": AutoresetMode.NEXT_STEP}
    single_observation_space, single_action_space = gym.spaces.Box(0, 1, (1,), np.float32), gym.spaces.Discrete(2)

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        self.t, self.lives, self.ended = 0, 3, False
        return np.zeros((1, 1), np.float32), {"lives": np.array([3])}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        reward = 0.0
        if self.ended:
            self.lives, self.ended = self.lives or 3, False
        else:
            self.t += 1
            reward, self.ended = (7.0, False) if self.t % 2 else (-2.0, True)
            self.lives -= self.ended
        ends = np.array([self.ended])
        rows = np.zeros((1, 1), np.float32), np.array([reward]), ends, np.zeros(1, bool)
        return *rows, {"lives": np.array([self.lives])}


class LastLives(Lives):
    """The row after a lost life is a real step, as ale_py's is; with the last but one the game is over there."""

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        lost = self.ended and self.lives == 1
        *made, info = super().step(actions)
        if lost:
            self.lives, self.ended = 0, True
            made[1], made[2], info = np.array([0.5]), np.array([True]), {"lives": np.array([0])}
        return (*made, info)


def test_no_reset_is_learned_from_where_a_game_ends_in_a_dead_row() -> None:
    source = EnvSource(lambda seed: Games(LastLives(), signs=False), 28)
    source.restart(0)
    batch = source.collect(ActorCritic(Lives.single_observation_space, gym.spaces.Discrete(2), Network(hidden=(4,))))
    source.close()
    live, start = batch.mask[:, 0].tolist(), batch.start[:, 0].tolist()
    game = [True, True, False, True, True, False, False]  # two lives, what follows each, and the reset
    assert live == game * 4
    assert start == [True, False, False, True, False, False, False] * 4
    assert batch.reward[batch.mask[:, 0], 0].tolist() == [7, -2] * 8
    assert source.episodes.metrics() == {"episodes": 4, "return_mean": 10.5, "length_mean": 4.0}


def test_lives_are_learned_from_and_games_are_scored() -> None:
    source = EnvSource(lambda seed: Games(Lives(), signs=True), 27)
    source.restart(0)
    batch = source.collect(ActorCritic(Lives.single_observation_space, gym.spaces.Discrete(2), Network(hidden=(4,))))
    source.close()
    live = batch.mask[:, 0]
    assert batch.reward[live, 0].tolist() == [1, -1] * 9
    assert batch.terminated[live, 0].tolist() == [False, True] * 9
    metrics = source.episodes.metrics()
    assert metrics == {"episodes": 3, "return_mean": 15.0, "length_mean": 6.0}


@pytest.mark.parametrize("name", OPTIONS)
def test_lanes_learn_from_signs_and_lives_and_single_games_are_whole(name: str) -> None:
    """Eight lanes at random lose lives and games; a single game ends with the last of them, and pays what it pays."""
    lanes = lanes_for(name, 8, options=OPTIONS[name])
    assert lanes.observation_space.shape == (1, 84, 84)
    envs = lanes.make(3)
    envs.reset(seed=3)
    rng, rewards, lost, over = np.random.default_rng(0), set[float](), 0, 0
    for _ in range(600):
        _, reward, terminated, truncated, info = envs.step(rng.integers(4, size=8))
        rewards |= set(reward.tolist())
        lost, over = lost + int(terminated.sum()), over + int(info["over"].sum())
        assert not (info["over"] & ~(terminated | truncated)).any()
        np.testing.assert_array_equal(np.sign(info["score"]), reward)
    envs.close()
    assert rewards <= {0.0, 1.0}
    assert 1.0 in rewards
    assert lost >= 5 * over > 0

    one = single(name, **OPTIONS[name])()
    one.reset(seed=4)
    lasted, done = 0, False
    while not done:
        _, _, terminated, truncated, _ = one.step(lasted % 4)
        lasted, done = lasted + 1, terminated or truncated
    one.close()
    assert lasted > 60  # five lives, of some 25 steps each


@pytest.mark.parametrize("whole", [True, False], ids=["a whole game", "learning lanes"])
@pytest.mark.parametrize("name", OPTIONS)
def test_the_fire_button_is_pressed_after_every_life(name: str, whole: bool) -> None:
    """Or who does nothing would stand there for good, with the ball in hand."""
    if whole:  # as its evaluation plays it
        one, steps, over = single(name, **OPTIONS[name])(), 0, False
        one.reset(seed=4)
        while not over:
            _, _, terminated, truncated, _ = one.step(0)
            steps, over = steps + 1, terminated or truncated
            assert steps < 1000
        one.close()
        return
    envs = lanes_for(name, 2, options=OPTIONS[name]).make(3)
    envs.reset(seed=3)
    games = sum(envs.step(np.zeros(2, int))[4]["over"].sum() for _ in range(600))
    envs.close()
    assert games >= 4


def test_what_presets_leave_to_the_libraries_is_as_in_the_papers() -> None:
    from ale_py.vector_env import AtariVectorEnv

    theirs = {name: given.default for name, given in inspect.signature(AtariVectorEnv.__init__).parameters.items()}
    papers = dict(noop_max=30, frameskip=4, maxpool=True, use_fire_reset=True, grayscale=True, img_height=84)
    assert theirs.items() >= papers.items()
    pool = envpool().make_spec("Pong-v5").config._asdict()
    papers = dict(noop_max=30, frame_skip=4, use_fire_reset=True, gray_scale=True, img_height=84, img_width=84)
    assert pool.items() >= (papers | dict(repeat_action_probability=0.0)).items()


def test_where_lives_are_no_episodes_every_action_is_the_policys() -> None:
    for name, options, fires in (("ALE/Breakout-v5", {}, False), ("ALE/Breakout-v5", LEARNING, True)):
        for env in (lanes_for(name, 2, options=options).make(0), single(name, **options)().unwrapped):
            lanes: Any = env.lane if isinstance(env, OneLane) else env
            assert isinstance(lanes.env if isinstance(lanes, Games) else lanes, Fires) == fires
            env.close()


def test_games_without_a_fire_button_are_left_alone() -> None:
    register_games("ALE/Freeway-v5")
    assert fire_button("ALE/Freeway-v5", {}) is None
    assert fire_button("ALE/Breakout-v5", {}) == 1
    assert fire_button("ALE/Breakout-v5", {"use_fire_reset": False}) is None
    assert fire_button("ALE/Freeway-v5", {"full_action_space": True}) == 1


class Counts(Lives):
    """Says what was done."""

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        self.did = int(actions[0])
        return super().step(actions)


def test_only_the_step_after_a_life_is_exchanged() -> None:
    lives, did = Counts(), []
    env = Fires(lives, 9)
    env.reset()
    for _ in range(9):
        env.step(np.zeros(1, int))
        did.append(lives.did)
    assert did == [0, 0, 9, 0, 0, 9, 0, 0, 0], "two lives lost; the third was the last, and a game begins"


@pytest.mark.parametrize("name", OPTIONS)
def test_the_same_seed_is_the_same_game(name: str) -> None:
    one = single(name, **OPTIONS[name])()
    first, second = (one.reset(seed=5)[0].copy() for _ in range(2))
    np.testing.assert_array_equal(first, second)
    paths = []
    for _ in range(2):
        one.reset(seed=6)
        paths.append(np.stack([one.step(2)[0] for _ in range(20)]))
    one.close()
    np.testing.assert_array_equal(*paths)


SMALLEST = dict(envs=2, horizon=16, sequence=8, minibatches=2, epochs=1, steps=96, checkpoint_every=32)
SHORT = SMALLEST | dict(eval_every=0, eval_episodes=1, max_episode_steps=20, quiet=True)


@pytest.mark.parametrize(
    "name",
    [
        "ALE/Pong-v5",
        "Pong-v5",
        "StarpilotEasy-v0",
        "MiniGrid-MemoryS9-v0",
        "Racetrack-v0",
        "LaneKeeping-v0",
        "Basic-v1",
    ],
)
def test_every_world_trains_with_its_preset_and_resumes_exactly(name: str, tmp_path: Path) -> None:
    if name == "StarpilotEasy-v0":
        pytest.importorskip("envpool.procgen", reason="EnvPool's Procgen needs libQt5Gui", exc_type=ImportError)
    whole, broken = (proximo.train(name, out=tmp_path / way, **SHORT) for way in ("whole", "broken"))
    assert whole.config.preset not in ("discrete", "continuous")
    for late in all_of(broken.folder)[1:]:
        shutil.rmtree(late)
    proximo.resume(broken.folder, quiet=True)
    assert len(all_of(whole.folder)) > 2
    for one, other in zip(all_of(whole.folder), all_of(broken.folder), strict=True):
        for file in ("model.safetensors", "state.safetensors"):
            assert (one / file).read_bytes() == (other / file).read_bytes()
    score = proximo.evaluate(whole.folder, episodes=1)
    assert score.lengths[0] <= 20


@pytest.mark.parametrize("name", ["Racetrack-v0", "Highway-v0", "Intersection-v0"])
def test_roads_are_learned_from_in_envpools_lanes_and_resumed_exactly(name: str, tmp_path: Path) -> None:
    """As a user has them: without a limit of episodes, which would be stepped one by one."""
    roads = {key: value for key, value in SHORT.items() if key != "max_episode_steps"}
    whole, broken = (proximo.train(name, out=tmp_path / way, **roads) for way in ("whole", "broken"))
    assert whole.config.run.backend == "envpool"
    assert whole.config.preset in ("racetrack", "highway")
    for late in all_of(broken.folder)[1:]:
        shutil.rmtree(late)
    again = proximo.resume(broken.folder, quiet=True)
    assert again.step == whole.step
    for one, other in zip(all_of(whole.folder), all_of(broken.folder), strict=True):
        for file in ("model.safetensors", "state.safetensors"):
            assert (one / file).read_bytes() == (other / file).read_bytes()


def test_a_game_can_be_watched(tmp_path: Path) -> None:
    run = proximo.train("Racetrack-v0", out=tmp_path / "run", **SHORT)
    record_video(run.agent, "Racetrack-v0", run.config.run, tmp_path / "drive.mp4", 1)
    assert (tmp_path / "drive.mp4").stat().st_size > 1000


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The environments that evaluations were given."""
    seen: list[Any] = []
    monkeypatch.setattr(session, "evaluate", lambda agent, make, *rest: seen.append(make().unwrapped))
    return seen


def test_options_reach_the_environment(evaluated: list[Any], tmp_path: Path) -> None:
    run = proximo.train("Pendulum-v1", steps=128, env_options={"g": 3.5}, out=tmp_path / "run", **QUIET, **SMALL["ppo"])
    assert run.config.run.env_options == ("g=3.5",)
    assert [env.g for env in evaluated] == [3.5]


def test_a_makers_options_are_its_arguments(evaluated: list[Any], tmp_path: Path) -> None:
    proximo.train(Cue, steps=128, env_options=["wait=2"], out=tmp_path / "run", **QUIET, **SMALL["ppo"])
    assert [env.wait for env in evaluated] == [2]


def test_options_stand_over_the_presets_by_name(tmp_path: Path) -> None:
    run = proximo.train("Breakout-v5", env_options={"img_width": 80}, out=tmp_path / "run", **SHORT)
    assert run.config.run.options == dict(stack_num=1, episodic_life=True, reward_clip=True, img_width=80)


@pytest.mark.parametrize(
    "option", ['vzd_path="/tmp/evil"', "wad_path=evil", "xml_file=a", 'map="../evil"', "game_args=x"]
)
def test_a_file_names_no_file_or_program(option: str, tmp_path: Path) -> None:
    """Some environments run a program that an option names: a stranger's folder must not choose it."""
    run = proximo.train("CartPole-v1", steps=128, out=tmp_path / "run", **QUIET, **SMALL["ppo"])
    config = json.loads((run.folder / "config.json").read_text())
    config["run"]["env_options"] = [option]
    (run.folder / "config.json").write_text(json.dumps(config))
    for verb in (proximo.evaluate, proximo.resume, proximo.load):
        with pytest.raises(ConfigError, match="may name a file or a program"):
            verb(run.folder)


def test_a_makers_name_chooses_no_preset(tmp_path: Path) -> None:
    class PongWorld(Cue):
        pass

    run = proximo.train(PongWorld, steps=128, out=tmp_path / "run", **QUIET, **SMALL["ppo"])
    assert run.config.preset == "discrete"


def test_bfloat16_is_not_measured(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="more precisely than bfloat16"):
        proximo.train("Pong-v5", precision="bfloat16", max_kl=0.1, out=tmp_path / "run", **SHORT)


def test_options_are_read() -> None:
    read = options_from(["a=1", "b=0.5", "c=true", "d=word", "e=[1, 2]", "f=a=b", 'g="1"'])
    assert read == {"a": 1, "b": 0.5, "c": True, "d": "word", "e": [1, 2], "f": "a=b", "g": "1"}
    assert options_from(said(read)) == read
    assert said("a=1") == ("a=1",)


@pytest.mark.parametrize(
    ("env", "settings", "error", "words"),
    [
        ("CartPole-v1", dict(env_options=["sutton"]), ConfigError, "'sutton' must read name=value"),
        ("CartPole-v1", dict(env_options=["2x=1"]), ConfigError, "'2x=1' must read name=value"),
        ("Pendulum-v1", dict(env_options=["g=1", "g=2"]), ConfigError, "g is given twice"),
        ("Pendulum-v1", dict(env_options={"g": object()}), ConfigError, "must be JSON, or pass a maker"),
        ("Pendulum-v1", dict(env_options=["mass=1"]), ConfigError, "Pendulum-v1 has no option mass"),
        ("Racetrack-v0", dict(env_options=["duratio=1"]), UnknownName, "did you mean .*duration"),
        ("StarpilotEasy-v0", dict(backend="sync"), ConfigError, "EnvPool's alone: use the envpool backend"),
        ("Racetrack-v0", dict(backend="envpool", max_episode_steps=9), ConfigError, "heed no --max-episode-steps"),
        ("ALE/Pong-v5", dict(backend="async"), ConfigError, "threads of its own"),
        ("ALE/Pung-v5", {}, ConfigError, "Pung"),
        (gym.vector.SyncVectorEnv([lambda: gym.make("CartPole-v1")]), dict(env_options=["a=1"]), ConfigError, "lanes"),
    ],
)
def test_what_cannot_be_made_is_told(
    env: Any, settings: Any, error: type[Exception], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        proximo.train(env, steps=128, out=tmp_path / "run", preset="discrete", **settings, **QUIET, **SMALL["ppo"])
    assert not (tmp_path / "run").exists()


def test_ale_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r'pip install "\.\[atari\]"'):
        single("ALE/Pong-v5")()


def test_learning_is_all_that_whole_games_lack() -> None:
    options = {**OPTIONS["Breakout-v5"], **OPTIONS["ALE/Breakout-v5"], "frame_skip": 2}
    assert without(options, *SIGNS, LIVES) == {"stack_num": 1, "frame_skip": 2}


def test_whoever_never_fires_plays_on_after_a_life() -> None:
    """As while learning: EnvPool fires where a life begins, and the game ends with the last of them."""
    one = single("Breakout-v5", **OPTIONS["Breakout-v5"])()
    one.reset(seed=1)
    steps, terminated = 0, False
    while not terminated and steps < 2_000:  # without a ball it would wait for 27,000
        terminated, steps = one.step(0)[2], steps + 1
    one.close()
    assert 5 * 20 < steps < 5 * 200


def test_spaces_are_compared_leaf_by_leaf() -> None:
    box, bytes_ = gym.spaces.Box(-1, 1, (3,)), gym.spaces.Box(0, 255, (3,), np.uint8)
    assert alike(box, gym.spaces.Box(-5, 5, (3,), np.float64))
    assert not alike(box, bytes_)
    assert alike(gym.spaces.Dict(a=box), gym.spaces.Dict(a=box))
    assert not alike(gym.spaces.Dict(a=box), gym.spaces.Dict(b=box))
    assert not alike(gym.spaces.Dict(a=box), gym.spaces.Dict(a=bytes_))
    assert not alike(gym.spaces.Tuple([box]), gym.spaces.Tuple([box, box]))
    assert not alike(gym.spaces.Discrete(3), gym.spaces.Discrete(3, start=1))


def test_presets_name_environments_that_are() -> None:
    """Each beginning of an id in the screens' presets fits one of EnvPool's, and every Atari and Procgen game one."""
    ids = envpool_ids()
    for name in ("atari-envpool", "vizdoom", "minigrid", "racetrack", "lanekeeping", "highway"):
        for start in PRESETS[name].fits:
            assert any(each.startswith(start) for each in ids), start
    action = gym.spaces.Discrete(6)
    levels = [name for name in ids if name.startswith(PROCGEN) and name != "Maze-v0"]  # which is another maze
    assert len(levels) == 50
    assert all(name.startswith(PRESETS["procgen"].fits) for name in levels)
    for name, preset in (("Pong-v5", "atari-envpool"), ("ALE/Pong-v5", "atari"), ("CoinrunHard-v0", "procgen")):
        assert preset_for(name, action, "ppo").name == preset
        assert preset_for(name, action, "dual_clip").name == preset


@pytest.mark.parametrize(
    ("env", "task", "taken"),
    [
        ("ALE/Pong-v5", "atari", dict(steps=10_000_000, frame_stack=4, env_options=ALE_OPTIONS)),
        ("Pong-v5", "atari-envpool", dict(steps=10_000_000, images="nature", env_options=POOL_OPTIONS)),
        ("Basic-v1", "vizdoom", dict(frame_stack=4, env_options=("stack_num=1", "use_combined_action=true"))),
        ("MiniGrid-MemoryS9-v0", "minigrid", dict(images="numbers", steps=1_000_000)),
        ("LaneKeeping-v0", "lanekeeping", dict(max_episode_steps=200, gamma=0.9)),
        ("Racetrack-v0", "racetrack", dict(gamma=0.9, steps=300_000)),
        ("Pendulum-v1", "pendulum", dict(gamma=0.9, steps=300_000)),
    ],
)
def test_the_task_stands_over_a_preset_for_any_other(env: str, task: str, taken: dict[str, Any]) -> None:
    config, [note] = session.preset_config(env, "trpo", "auto")
    settings = {**vars(config.run), **vars(config.algorithm), **vars(config.network)}
    assert config.preset == "trust-any"
    assert settings.items() >= taken.items()
    assert (config.run.envs, config.algorithm.horizon, config.algorithm.lr) == (8, 256, 1e-3), "the algorithm's own"
    told = re.search(rf"\(fits the environment; (.*) of {task}\): {re.escape(PRESETS['trust-any'].source)}$", note)
    assert told
    names = told[1].split(", ")
    assert set(names) >= taken.keys()
    assert all(settings[name] == PRESETS[task].settings[name] for name in names)
    one, *others = (preset_for(env, gym.spaces.Discrete(2), algo) for algo in PRESETS["trust-any"].algos)
    assert others == [one, one]


@pytest.mark.parametrize("env", ["CartPole-v1", "HalfCheetah-v5", "MountainCar-v0", "Pong-v5", "of-my-own-v0"])
@pytest.mark.parametrize("algo", ALGORITHMS)
def test_every_algorithm_has_a_preset_that_is_made_for_it(algo: str, env: str) -> None:
    action = gym.spaces.Box(-1, 1) if env == "HalfCheetah-v5" else gym.spaces.Discrete(2)
    assert algo in preset_for(env, action, algo).algos


def test_fisher_raos_tau_on_mujoco_is_its_papers() -> None:
    config, _ = session.preset_config("Walker2d-v5", "fisher_rao", "auto")
    assert (config.algorithm.tau, config.algorithm.horizon, config.preset) == (3e-4, 2048, "fisher-rao-mujoco")
    assert session.preset_config("Walker2d-v5", "ppo", "auto")[0].preset == "paper"


def test_where_no_preset_names_the_task_that_for_any_other_stands_alone() -> None:
    config, [note] = session.preset_config("MountainCar-v0", "trpo", "auto")
    assert config.run.steps == PRESETS["trust-any"].settings["steps"]
    assert note.startswith("preset trust-any (fits the environment): ")
    config, [note] = session.preset_config("CartPole-v1", "trpo", "auto")
    assert note.startswith("preset trust-cartpole (fits the environment): ")


@pytest.mark.parametrize("name", ["atari", "atari-envpool", "vizdoom"])
def test_the_clip_of_atari_falls_where_an_algorithm_can_let_it(name: str) -> None:
    taken = {algo: PRESETS[name].settings_for(algo, known_settings(algo)) for algo in ("ppo", "dual_clip", "a2c")}
    assert [(s.get("clip"), s.get("anneal_clip")) for s in taken.values()] == [(0.1, True), (0.1, None), (None, None)]


@pytest.mark.parametrize("env", ["ALE/Pong-v5", "Pong-v5", "Basic-v1"])
@pytest.mark.parametrize("algo", ALGORITHMS)
def test_stacks_of_frames_are_learned_from_in_sequences_that_divide_a_rollout(env: str, algo: str) -> None:
    preset = preset_for(env, gym.spaces.Discrete(2), algo)
    config = resolved(env, algo, preset.name, preset.settings_for(algo, known_settings(algo)))
    assert config.network.frame_stack == 4
    assert config.algorithm.horizon % config.sequence == 0
    assert config.sequence == (5 if algo == "a2c" else 16)


def test_pictures_as_numbers() -> None:
    space = gym.spaces.Box(0, 255, (7, 7, 3), np.uint8)
    policy = ActorCritic(space, gym.spaces.Discrete(2), Network(images="numbers", normalize_observation=True))
    assert policy.trunk.features == 147
    rows = torch.randint(0, 10, (5, 7, 7, 3), dtype=torch.uint8)
    seen, _ = policy.trunk(rows, (), None, torch.float32)
    torch.testing.assert_close(seen, rows.flatten(1).float())
