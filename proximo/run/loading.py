"""From a run's folder to what was learned: the agent, alone or with its environment. No code from the folder is run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from proximo.drift import tensors_of
from proximo.errors import CheckpointError, ConfigError, ProximoError, RunFolderError
from proximo.models.actor_critic import ActorCritic
from proximo.run import checkpoint, folder
from proximo.run.agent import Agent
from proximo.run.config import Resolved, RunConfig
from proximo.run.evaluate import Score, evaluate
from proximo.run.machine import threads
from proximo.run.run import load_policy, must_match
from proximo.run.spaces import space_from_json
from proximo.sources.making import MANY, EnvLike, single
from proximo.updaters.optimizer import packed

LARGEST = 2**28  # parameters; a stranger's config.json may ask for more than there is memory


def load_agent(path: str | Path, say: Callable[[str], None] = lambda text: None) -> Agent:
    """The agent of a run's newest good checkpoint (or of one checkpoint's folder), without its environment.

    No code from the folder is run. Raises RunFolderError or CheckpointError, in bounded time and memory.
    """
    path = Path(path)
    config = folder.read_config(run_of(path))
    saved = checkpoint.load(path) if run_of(path) != path.resolve() else checkpoint.latest(path, say)
    must_match(config, saved)
    agent = agent_of(config, "cpu", fresh=False)
    load_policy(agent.policy, saved)
    return agent


def opened(path: Path, env: EnvLike | None, say: Callable[[str], None]) -> tuple[Agent, EnvLike, RunConfig]:
    """The agent of a run, the environment it was trained on, and the run's configuration."""
    agent = load_agent(path, say)
    config = folder.read_config(run_of(path))
    return agent, environment_of(config, env), config.run


def evaluate_run(
    path: str | Path,
    episodes: int = 20,
    env: EnvLike | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Score:
    """Play whole episodes with a run's newest good checkpoint; `env` as in `resume`."""
    if episodes < 1:
        raise ConfigError(f"episodes is {episodes}: at least 1 is needed")
    agent, env, run = opened(Path(path), env, say)
    if isinstance(env, MANY):
        raise ConfigError("evaluation needs single environments: pass a maker, not a vector environment")
    with threads(run.threads):
        score = evaluate(agent, single(env, run.max_episode_steps, **run.options), episodes, run.seed)
    assert score is not None, "nothing asked it to stop"
    return score


def run_of(path: Path) -> Path:
    """The run's folder, given it or one of its checkpoints."""
    path = path.resolve()
    return path.parent.parent if (path / checkpoint.MANIFEST).exists() else path


def reference_of(config: Resolved) -> dict[str, Tensor]:
    """The policy that the run measures drift from, as its tensors; ConfigError unless it is one of the same kind."""
    path = Path(config.run.drift_reference or "")
    try:
        other, policy = folder.read_config(run_of(path)), load_agent(path).policy
    except (RunFolderError, CheckpointError) as error:
        raise ConfigError(f"drift_reference: {error}") from None
    if other.spaces != config.spaces:
        raise ConfigError(f"drift_reference {path} acts in other spaces, those of {other.env}: name a run on the same")
    if other.network != config.network:
        theirs = ", ".join(f"{name} {value}" for name, value in asdict(other.network).items())
        raise ConfigError(f"drift_reference {path} has another network ({theirs}): name a run with the same")
    return tensors_of(policy)


def agent_of(config: Resolved, device: str, fresh: bool = True) -> Agent:
    """An agent for the configuration's spaces, its weights fresh or yet to be loaded.

    Its size is checked before any memory is taken, since the configuration may be a stranger's.
    """
    spaces = {name: space_from_json(config.spaces.get(name)) for name in ("observation", "action")}
    try:
        with torch.device("meta"):
            outline = ActorCritic(spaces["observation"], spaces["action"], config.network)
    except (RuntimeError, OverflowError, MemoryError, TypeError, ValueError) as error:
        if isinstance(error, ProximoError):
            raise
        raise ConfigError(f"the network cannot be built: {str(error).splitlines()[0]}") from None
    size = sum(p.numel() for p in outline.parameters())
    if size > LARGEST:
        raise ConfigError(f"the network would have {size:,} parameters; at most {LARGEST:,} are built")
    if fresh:
        policy = ActorCritic(spaces["observation"], spaces["action"], config.network).to(device)
    else:
        policy = outline._apply(lambda x: torch.empty_like(x, device=device) if x.is_meta else x.to(device))
    packed(policy)
    return Agent(policy, spaces["observation"], spaces["action"])


def environment_of(config: Resolved, env: EnvLike | None) -> EnvLike:
    """The environment to go on with; a folder alone is never allowed to name a module to import."""
    if env is not None:
        if isinstance(env, str) and env != config.env:
            raise CheckpointError(f"this run was trained on {config.env}, not on {env}")
        return env
    if not config.registered:
        advice = "in Python pass it again: proximo.resume(folder, env=…), proximo.evaluate(folder, env=…)"
        raise RunFolderError(f"this run's environment {config.env} was made in Python; {advice}")
    if ":" in config.env:
        raise RunFolderError(f"{config.env} would import a module that this folder names: pass it yourself as env")
    return config.env
