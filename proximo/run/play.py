"""Videos of an agent at work."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import gymnasium as gym

from proximo.errors import ConfigError, EnvFailure, MissingExtra, ProximoError
from proximo.run.agent import Agent
from proximo.run.config import RunConfig
from proximo.run.evaluate import LONGEST
from proximo.run.files import replace_durably
from proximo.run.seeding import EVALUATION, derived
from proximo.sources.backends import EnvLike, single


def record_video(agent: Agent, env: EnvLike, run: RunConfig, video: Path, episodes: int) -> tuple[int, list[float]]:
    """Write `episodes` episodes as one video; returns the number of frames and each episode's return."""
    if importlib.util.find_spec("imageio") is None or importlib.util.find_spec("imageio_ffmpeg") is None:
        raise MissingExtra('writing videos needs imageio and ffmpeg: pip install "proximo[video]"')
    if video.suffix not in (".mp4", ".gif"):
        raise ConfigError(f"{video} must end in .mp4 or .gif")
    if isinstance(env, gym.vector.VectorEnv):
        raise ConfigError("a vector environment cannot be recorded: pass a maker of single environments")
    import imageio.v3 as iio

    if episodes < 1:
        raise ConfigError(f"episodes is {episodes}: at least 1 is needed")
    made = single(env, run.max_episode_steps, render_mode="rgb_array")()
    frames, returns = [], []
    try:
        for i in range(episodes):
            observation, _ = made.reset(seed=derived(run.seed, EVALUATION, i))
            total, ended, length = 0.0, False, 0
            while not ended and length < LONGEST:
                frames.append(made.render())
                observation, reward, terminated, truncated, _ = made.step(agent.act(observation))
                total, ended, length = total + float(reward), terminated or truncated, length + 1
            returns.append(total)
    except ProximoError:
        raise
    except Exception as error:
        advice = "; without a screen set MUJOCO_GL=egl or MUJOCO_GL=osmesa" if "GL" in str(error) else ""
        raise EnvFailure(f"the environment cannot be rendered: {type(error).__name__}: {error}{advice}") from error
    finally:
        made.close()
    options: dict[str, Any] = {"macro_block_size": 2} if video.suffix == ".mp4" else {}
    try:
        with tempfile.TemporaryDirectory() as place:
            aside = Path(place) / video.name
            iio.imwrite(aside, frames, fps=made.metadata.get("render_fps", 30), **options)
            video.parent.mkdir(parents=True, exist_ok=True)
            replace_durably(video, aside.read_bytes())
    except Exception as error:  # what ffmpeg and its wrappers raise is of many kinds
        raise ConfigError(f"cannot write {video}: {error}") from None
    return len(frames), returns
