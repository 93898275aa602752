"""From a run's folder to what was learned: the agent, alone or with its environment. No code from the folder is run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from proximo.drift import tensors_of
from proximo.errors import CheckpointError, ConfigError, ProximoError, RunFolderError
from proximo.models.actor_critic import OURS, ActorCritic
from proximo.models.network import Network
from proximo.models.own import PARTS, MakeCore, MakeEncoder, MakePolicy, Own, must_be_float32, own_policy
from proximo.policy import Policy
from proximo.run import checkpoint, folder
from proximo.run.agent import Agent
from proximo.run.config import Resolved, RunConfig, changed
from proximo.run.evaluate import Score, evaluate
from proximo.run.run import load_policy, must_match
from proximo.run.seeding import borrowed_generators
from proximo.run.spaces import space_from_json
from proximo.sources.making import MANY, EnvLike, single
from proximo.threads import threads
from proximo.updaters.optimizer import packed

LARGEST = 2**28  # parameters; a stranger's config.json may ask for more than there is memory


def load(
    path: str | Path,
    say: Callable[[str], None] = lambda text: None,
    *,
    encoder: MakeEncoder | None = None,
    core: MakeCore | None = None,
    policy: MakePolicy | None = None,
) -> Agent:
    """The agent of a run's newest good checkpoint (or of one checkpoint's folder), without its environment.

    `encoder`, `core` and `policy` are those that it was trained with, where these came from you. No code from the
    folder is run. Raises RunFolderError, CheckpointError or ConfigError, in bounded time and memory.
    """
    return load_agent(path, say, Own(encoder, core, policy))


def load_agent(path: str | Path, say: Callable[[str], None] = lambda text: None, own: Own = OURS) -> Agent:
    """`load`, given what a user brings as one."""
    path = Path(path)
    config = folder.read_config(run_of(path))
    saved = checkpoint.load(path) if run_of(path) != path.resolve() else checkpoint.latest(path, say)
    must_match(config, saved)
    agent = agent_of(config, "cpu", own, fresh=False)
    load_policy(agent.policy, saved)
    return agent


def opened(
    path: Path, env: EnvLike | None, say: Callable[[str], None], own: Own = OURS
) -> tuple[Agent, EnvLike, RunConfig]:
    """The agent of a run, the environment it was trained on, and the run's configuration."""
    agent = load_agent(path, say, own)
    config = folder.read_config(run_of(path))
    return agent, environment_of(config, env), config.run


def evaluate_run(
    path: str | Path,
    episodes: int = 20,
    env: EnvLike | None = None,
    say: Callable[[str], None] = lambda text: None,
    seed: int | None = None,
    max_episode_steps: int | None = None,
    *,
    encoder: MakeEncoder | None = None,
    core: MakeCore | None = None,
    policy: MakePolicy | None = None,
) -> Score:
    """Play whole episodes with a run's newest good checkpoint; `env`, `encoder`, `core` and `policy` as in `resume`.

    The i-th episode is seeded by (`seed`, i); without a seed by the run's, which plays what it was evaluated by. It
    ends after `max_episode_steps` at the latest, by default the run's.
    """
    if episodes < 1:
        raise ConfigError(f"episodes is {episodes}: at least 1 is needed")
    if seed is not None and not 0 <= seed < 2**32:
        raise ConfigError(f"seed is {seed}: it must be from 0 to {2**32 - 1}")
    agent, env, run = opened(Path(path), env, say, Own(encoder, core, policy))
    if isinstance(env, MANY):
        raise ConfigError("evaluation needs single environments: pass a maker, not a vector environment")
    run = changed(run, max_episode_steps=max_episode_steps)
    make = single(env, run.max_episode_steps, **run.options)
    with threads(run.threads):
        score = evaluate(agent, make, episodes, run.seed if seed is None else seed)
    assert score is not None, "nothing asked it to stop"
    return score


def run_of(path: Path) -> Path:
    """The run's folder, given it or one of its checkpoints."""
    path = path.resolve()
    return path.parent.parent if (path / checkpoint.MANIFEST).exists() else path


def reference_of(config: Resolved, policy: Policy, own: Own = OURS) -> dict[str, Tensor]:
    """What the run measures its policy's drift from, as tensors; ConfigError unless the two are of the same kind."""
    path = Path(config.run.drift_reference or "")
    try:
        other, reference = folder.read_config(run_of(path)), tensors_of(load_agent(path, own=own).policy)
    except (RunFolderError, CheckpointError) as error:
        raise ConfigError(f"drift_reference: {error}") from None
    if other.spaces != config.spaces:
        raise ConfigError(f"drift_reference {path} acts in other spaces, those of {other.env}: name a run on the same")
    shapes, wanted = ({name: x.shape for name, x in each.items()} for each in (reference, tensors_of(policy)))
    if shapes != wanted or meaning(other.network) != meaning(config.network):
        theirs = ", ".join(f"{name} {value}" for name, value in asdict(other.network).items())
        raise ConfigError(f"drift_reference {path} has another network ({theirs}): name a run with the same")
    return reference


def meaning(network: Network) -> Network:
    """What decides the meaning of a policy's tensors, besides their names and shapes.

    Not how it is learned from or multiplied, nor what those names tell; nor where a parameter began.
    """
    begins = {} if network.state_std else dict(log_std_init=0.0)
    return replace(network, sequence=None, precision="float32", trunk="auto", **begins)


def agent_of(config: Resolved, device: str, own: Own = OURS, fresh: bool = True) -> Agent:
    """An agent for the configuration's spaces, its weights fresh or yet to be loaded.

    What is ours of it has its size checked before any memory is taken, since the configuration may be a stranger's.
    """
    must_be_given(config, own)
    observations, actions = (space_from_json(config.spaces.get(name)) for name in ("observation", "action"))

    def build() -> Any:
        if own.policy is not None:
            return own_policy(own.policy, observations, actions)
        return ActorCritic(observations, actions, config.network, own)

    if fresh and own.names:
        policy = build()  # at once: what a user's callables make, they make once
    else:
        with borrowed_generators():
            policy = outline(build)
        policy = build() if fresh else policy._apply(lambda x: torch.empty_like(x, device=device) if x.is_meta else x)
    must_be_float32(policy, own.names)
    policy = policy.to(device)
    packed(policy)
    return Agent(policy, observations, actions)


def outline(build: Callable[[], Any]) -> Any:
    """What is built, without its numbers, but for what a user brings; ConfigError where it is too large."""
    try:
        with torch.device("meta"):
            policy = build()
    except (RuntimeError, OverflowError, MemoryError, TypeError, ValueError) as error:
        if isinstance(error, ProximoError):
            raise
        raise ConfigError(f"the network cannot be built: {str(error).splitlines()[0]}") from None
    size = sum(p.numel() for p in policy.parameters())
    if size > LARGEST:
        raise ConfigError(f"the network would have {size:,} parameters; at most {LARGEST:,} are built")
    return policy


def must_be_given(config: Resolved, own: Own) -> None:
    """ConfigError unless a user brings the parts that the run was begun with, and no others."""
    for part in PARTS:
        kind = f"{'an' if part == 'encoder' else 'a'} {part} of your own"
        if part in config.yours and part not in own.names:
            raise ConfigError(
                f"this run was trained with {kind}, which no folder holds: in Python pass it again, "
                f"proximo.resume(folder, {part}=…), and so to proximo.load and proximo.evaluate"
            )
        if part in own.names and part not in config.yours:
            raise ConfigError(f"this run was trained without {kind}: leave out {part}")


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
        advice = "give it yourself, by --env or env="
        raise RunFolderError(f"{config.env} would import a module that this folder names: {advice}")
    return config.env
