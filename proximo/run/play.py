"""Videos of an agent at work."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from proximo.errors import ConfigError, EnvFailure, MissingExtra, ProximoError, install
from proximo.run.agent import Agent
from proximo.run.config import RunConfig
from proximo.run.evaluate import LONGEST
from proximo.run.files import replace_durably
from proximo.run.seeding import EVALUATION, derived
from proximo.sources.making import MANY, EnvLike, single


def record_video(agent: Agent, env: EnvLike, run: RunConfig, video: Path, episodes: int) -> tuple[int, list[float]]:
    """Write `episodes` episodes as one video; returns the number of frames and each episode's return."""
    if importlib.util.find_spec("imageio") is None or importlib.util.find_spec("imageio_ffmpeg") is None:
        raise MissingExtra(f"writing videos needs imageio and ffmpeg: {install('video')}")
    if video.suffix not in (".mp4", ".gif"):
        raise ConfigError(f"{video} must end in .mp4 or .gif")
    if isinstance(env, MANY):
        raise ConfigError("a vector environment cannot be recorded: pass a maker of single environments")
    if episodes < 1:
        raise ConfigError(f"episodes is {episodes}: at least 1 is needed")
    import imageio.v2 as iio

    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")  # the one of its ways that needs no screen and is mostly there
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    made = single(env, run.max_episode_steps, **(run.options | {"render_mode": "rgb_array"}))()
    fps = made.metadata.get("render_fps", 30)
    mp4: dict[str, Any] = {"fps": fps, "macro_block_size": 2}
    gif: dict[str, Any] = {"duration": 1000 / fps}
    returns, count = list[float](), 0
    try:
        with tempfile.TemporaryDirectory() as place:
            aside = Path(place) / video.name
            writer: Any = iio.get_writer(aside, **(mp4 if video.suffix == ".mp4" else gif))
            with writer:
                for i in range(episodes):
                    returns.append(0.0)
                    for frame, reward in played(made, agent, derived(run.seed, EVALUATION, i)):
                        writer.append_data(frame)
                        returns[-1] += reward
                        count += 1
            video.parent.mkdir(parents=True, exist_ok=True)
            replace_durably(video, aside.read_bytes())
    except ProximoError:
        raise
    except Exception as error:  # what ffmpeg and its wrappers raise is of many kinds
        raise ConfigError(f"cannot write {video}: {error}") from error
    finally:
        made.close()
    return count, returns


def played(env: gym.Env, agent: Agent, seed: int) -> Iterator[tuple[np.ndarray, float]]:
    """One episode as (frame before the step, reward of the step)."""
    observation, _ = env.reset(seed=seed)
    agent.reset()
    for _ in range(LONGEST):
        try:
            frame = np.asarray(env.render())
            assert frame.ndim == 3, f"render() gave {frame.dtype} of shape {frame.shape}, not a picture"
        except Exception as error:
            advice = "; without a screen set MUJOCO_GL=egl or MUJOCO_GL=osmesa" if "GL" in str(error) else ""
            raise EnvFailure(f"the environment cannot be rendered: {type(error).__name__}: {error}{advice}") from error
        observation, reward, terminated, truncated, _ = env.step(agent.act(observation))
        yield frame, float(reward)
        if terminated or truncated:
            return
