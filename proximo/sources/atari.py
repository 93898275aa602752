"""Atari as in the papers: learning from signs of rewards and life by life, scored by whole games.

No-op starts, the fire button, skipped frames and the 84×84 gray picture are made by the environments themselves, in
C++: `ale_py` for ids like ALE/Pong-v5, EnvPool for ids like Pong-v5 (Mnih et al. 2015, "Methods"; Machado et al. 2018,
arXiv:1709.06009). EnvPool presses the fire button after a life too, in training as in evaluation, as OpenAI Baselines
does; ale_py only where a game begins, so where lives are episodes it is pressed here after a life (`Fires`). EnvPool
draws the no-ops after a life as well, where the papers draw them once a game; should the game end in the midst of them,
which is rare, two games are scored as one.

While learning, a life's end is an episode's: stacks of frames and memories begin anew. In evaluation, which plays whole
games, they go on, as in OpenAI Baselines.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np

from proximo.errors import MissingExtra, install

ALE = "ALE/"  # what the ids of ale_py begin with
SIGNS, LIVES = ("reward_clip", "reward_clipping"), "episodic_life"  # EnvPool's name and ale_py's; the same in both
Made = tuple[Any, Any, Any, Any, dict[str, Any]]  # by a step
FRAMES = 4  # that ale_py skips where it is told nothing else


def register_games(name: str) -> None:
    """Let Gymnasium know ale_py's ids; MissingExtra where one is asked for and they are not installed."""
    if not name.startswith(ALE):
        return
    if importlib.util.find_spec("ale_py") is None:
        raise MissingExtra(f"{name} needs ale_py: {install('atari')}")
    import ale_py

    gym.register_envs(ale_py)


def ale_lanes(
    name: str, lanes: int, options: dict[str, Any], limit: int | None, fires: bool = False
) -> gym.vector.VectorEnv:
    """ale_py's vector environment: learning lanes, or where no option asks for these, whole games.

    With `fires`, or where a life's end is an episode's, the fire button is pressed after a life: nobody learns from
    that step there. Elsewhere it would be learned from, and be no action of the policy's.
    """
    made = {"reward_clipping": False, **options}
    if made.get(LIVES, False):  # its own way of that begins a new game after every life
        made["life_loss_info"] = True
    if limit is not None:
        made["max_num_frames_per_episode"] = limit * made.get("frameskip", FRAMES)

    def make(rest: dict[str, Any]) -> gym.vector.VectorEnv:
        env = Emulators(gym.make_vec(name, lanes, vectorization_mode="vector_entry_point", **without(rest, LIVES)))
        fire = fire_button(name, rest) if fires or made.get(LIVES, False) else None
        return env if fire is None else Fires(env, fire)

    return learning(made, make)


def fire_button(name: str, options: dict[str, Any]) -> int | None:
    """The action that presses it in a game of ale_py's; None where there is none, or it is not to be pressed."""
    if options.get("continuous", False) or not options.get("use_fire_reset", True):
        return None
    if options.get("full_action_space", False):
        return 1
    return actions_of(gym.spec(name).kwargs["game"]).get("FIRE")


@cache
def actions_of(game: str) -> dict[str, int]:
    """The numbers of the actions that a game of ale_py's knows, by name."""
    import ale_py
    from ale_py import roms

    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    console = ale_py.ALEInterface()
    console.loadROM(str(roms.get_rom_path(game)))
    return {action.name: number for number, action in enumerate(console.getMinimalActionSet())}


def learning(options: dict[str, Any], make: Any) -> gym.vector.VectorEnv:
    """Lanes that `make` makes of options, as `Games` where these ask for signs or lives."""
    signs = any(options.get(name, False) for name in SIGNS)
    made = make(options | {name: False for name in SIGNS if name in options})
    return Games(made, signs) if signs or options.get(LIVES, False) else made


def without(options: dict[str, Any], *names: str) -> dict[str, Any]:
    """The options but those of these names."""
    return {name: value for name, value in options.items() if name not in names}


class Emulators(gym.vector.VectorWrapper):
    """ale_py's lanes, which step by themselves between `step_async` and `step_wait`."""

    def step_async(self, actions: Any) -> None:
        lanes: Any = self.env.unwrapped
        lanes.send(actions)

    def step_wait(self) -> Made:
        lanes: Any = self.env.unwrapped
        return lanes.recv()


class Stepping(gym.vector.VectorWrapper):
    """A wrapper of lanes that may step by themselves: `asked` changes actions, `answered` what a step made."""

    def asked(self, actions: Any) -> Any:
        return actions

    def answered(self, made: Made) -> Made:
        return made

    def step(self, actions: Any) -> Made:
        return self.answered(self.env.step(self.asked(actions)))

    def step_async(self, actions: Any) -> None:
        lanes: Any = self.env
        lanes.step_async(self.asked(actions))

    def step_wait(self) -> Made:
        lanes: Any = self.env
        return self.answered(lanes.step_wait())


class Fires(Stepping):
    """Presses the fire button in the step after a life was lost, whatever was to be done there."""

    def __init__(self, env: gym.vector.VectorEnv, fire: int) -> None:
        super().__init__(env)
        self.fire = fire

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        self.lives, self.lost = np.array(info["lives"]), np.zeros(self.num_envs, bool)
        return observation, info

    def asked(self, actions: Any) -> Any:
        return np.where(self.lost, self.fire, actions)

    def answered(self, made: Made) -> Made:
        lives = np.array(made[-1]["lives"])
        self.lives, self.lost = lives, (lives > 0) & (lives < self.lives)
        return made


class Games(Stepping):
    """Learns from signs of rewards, and tells what whole games scored.

    info["score"] [N] is the game's own reward, and info["over"] [N] where a game ended, not only a life.
    """

    def __init__(self, env: gym.vector.VectorEnv, signs: bool) -> None:
        super().__init__(env)
        self.signs = signs
        self.metadata = env.metadata | {"scored": True}

    def answered(self, made: Made) -> Made:
        observation, reward, terminated, truncated, info = made
        over = terminated & (np.asarray(info["lives"]) == 0) | truncated
        learned = np.sign(reward) if self.signs else reward
        return observation, learned, terminated, truncated, {**info, "score": reward, "over": over}
