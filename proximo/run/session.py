"""The public verbs: train, resume, load. Each puts the parts of a run together and hands them to the loop."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from proximo.algorithms import algorithm_named
from proximo.drift import tensors_of
from proximo.errors import CheckpointError, ConfigError, ProximoError, RunFolderError
from proximo.models.actor_critic import ActorCritic, feature_count
from proximo.models.distributions import head_for
from proximo.presets import preset_for, preset_named
from proximo.run import checkpoint, folder
from proximo.run.agent import Agent
from proximo.run.config import Resolved, RunConfig, changed, resolved
from proximo.run.evaluate import Score, evaluate
from proximo.run.ledger import Ledger
from proximo.run.log import RunLog
from proximo.run.loop import learn
from proximo.run.machine import choose_compile, choose_device, computing, threads
from proximo.run.panel import reporter_for
from proximo.run.plot import has_curve, plot_runs
from proximo.run.run import Run, load, load_policy, must_match, save
from proximo.run.seeding import seed_all
from proximo.run.spaces import space_from_json, space_to_json
from proximo.sources.backends import MANY, EnvLike, Lanes, lanes_for, name_of, single
from proximo.state import restore

FEW_UPDATES = 10
LARGEST = 2**28  # parameters; a stranger's config.json may ask for more than there is memory


def train(
    env: EnvLike,
    algo: str = "ppo",
    steps: int | None = None,
    *,
    preset: str = "auto",
    out: str | Path | None = None,
    quiet: bool = False,
    **settings: Any,
) -> Run:
    """Train an agent, from nothing to a run's folder.

    `env` is a Gymnasium id, a callable that makes an environment, or a vector environment. `settings` are the fields
    of RunConfig, of the algorithm's Config and of Network, by name; they stand over the preset's, which stand over
    the defaults. Raises a ProximoError, in one line, for what cannot work.
    """
    if steps is not None:
        settings["steps"] = steps
    if isinstance(env, MANY) and settings.setdefault("envs", env.num_envs) != env.num_envs:
        raise ConfigError(f"envs is {settings['envs']}, but the vector environment has {env.num_envs} lanes")
    config, notes = preset_config(env, algo, preset, settings)
    return begin(env, config, out, quiet, notes)


def preset_config(
    env: EnvLike, algo: str, preset: str, settings: dict[str, Any] | None = None
) -> tuple[Resolved, list[str]]:
    """The configuration of a preset with settings over it, and a note that says which it is and why."""
    algorithm_named(algo)
    if isinstance(env, MANY):
        action_space = env.single_action_space
    else:
        one = single(env)()
        action_space = one.action_space
        one.close()
    chosen = preset_for(name_of(env), action_space, algo) if preset == "auto" else preset_named(preset)
    config = resolved(name_of(env), algo, chosen.name, {**chosen.settings, **(settings or {})}, isinstance(env, str))
    why = "fits the environment" if preset == "auto" else "as asked"
    return config, [f"preset {chosen.name} ({why}): {chosen.source}"]


def begin(env: EnvLike, config: Resolved, out: str | Path | None, quiet: bool, notes: list[str]) -> Run:
    """Build a run from a resolved configuration, in a new folder, and train it."""
    config, lanes, choices = fitted(env, config)
    with computing(config.run):
        seed_all(config.run.seed)
        run = build(env, config, lanes)
        run.folder = folder.new_folder(out, config)
        save(run)
        return drive(run, quiet, notes + choices)


def fitted(env: EnvLike, config: Resolved) -> tuple[Resolved, Lanes, list[str]]:
    """The configuration with all that depends on the environment and the machine, the lanes, and notes that say why."""
    (device, reason), (mode, why) = choose_device(config, env), choose_compile(config)
    lanes = lanes_for(env, config.run.envs, config.run.backend, config.run.max_episode_steps, device)
    spaces = spaces_of(lanes)
    backend = "auto" if lanes.backend == "yours" else lanes.backend
    config = replace(config, run=changed(config.run, device=device, backend=backend, compile=mode), spaces=spaces)
    notes = [f"backend {lanes.backend}: {lanes.reason}", f"device {device}: {reason}", f"compile {mode}: {why}"]
    return config, lanes, notes + cautions(config, lanes)


def resume(
    path: str | Path,
    env: EnvLike | None = None,
    steps: int | None = None,
    device: str | None = None,
    quiet: bool = False,
    stop_drift: float | None = None,
) -> Run:
    """Continue a run from its newest good checkpoint, exactly as if it had never stopped.

    `env` is needed where the run was started from Python with a maker or a vector environment. `steps` extends the
    run to that many in all, which is not the run of that length from the start (docs/architecture.md). `device` moves
    it; the numbers then differ a little. `stop_drift` lets a run that strayed go on, or stops one earlier.
    """
    path = Path(path)
    config = folder.read_config(path)
    env = environment_of(config, env)
    if stop_drift is not None and not config.run.measures_drift:
        raise ConfigError(f"{path} was begun without max_kl, stop_drift or drift_reference: its drift is not known")
    config = replace(config, run=changed(config.run, steps=steps, device=device, stop_drift=stop_drift))
    notes: list[str] = []
    saved = None if checkpoint.none_yet(path) else checkpoint.latest(path, notes.append)
    mode, why = choose_compile(config)
    if mode != config.run.compile:
        notes.append(f"compile {mode}: {why}; the numbers then differ a little")
    config = replace(config, run=changed(config.run, device=choose_device(config, env)[0], compile=mode))
    lanes = lanes_for(env, config.run.envs, config.run.backend, config.run.max_episode_steps, config.run.device)
    if spaces_of(lanes) != config.spaces:
        raise CheckpointError(f"{path} was trained on other spaces than {config.env} has here")
    with computing(config.run):
        seed_all(config.run.seed)
        run = build(env, config, lanes, fresh=saved is None)
        run.folder = path
        if saved is not None:
            load(run, saved)
        else:
            save(run)  # it was stopped before its first checkpoint, and begins again
        if config.complete(run.step):
            advice = f"`proximo resume {path} --steps N` goes on to N steps in all"
            raise RunFolderError(f"{path} is complete: {run.step:,} of {config.run.steps:,} steps are done; {advice}")
        if run.strayed is not None:
            raise RunFolderError(f"{path} {run.strayed}")
        folder.write_config(path, config)
        folder.rewind(path, run.step)
        notes.append(f"resuming {path} at step {run.step:,}")
        return drive(run, quiet, notes)


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
        score = evaluate(agent, single(env, run.max_episode_steps), episodes, run.seed)
    assert score is not None, "nothing asked it to stop"
    return score


def run_of(path: Path) -> Path:
    """The run's folder, given it or one of its checkpoints."""
    path = path.resolve()
    return path.parent.parent if (path / checkpoint.MANIFEST).exists() else path


def drive(run: Run, quiet: bool, notes: list[str]) -> Run:
    """Train to the end and draw the curve; everything is closed whatever happens."""
    title = f"{run.config.algo} · {run.config.env} · {run.folder}"
    with ExitStack() as stack:
        stack.callback(run.source.close)
        log = RunLog(run.folder, run.step)
        stack.callback(log.close)
        reporter = reporter_for(quiet, title, run.config.run.steps, run.step)
        stack.callback(lambda: reporter.close(run.finished))
        for note in notes:
            reporter.say(note)
        learn(run, log, reporter)
    if has_curve(run.folder):
        plot_runs([run.folder], run.folder / folder.CURVE)
    return run


def cautions(config: Resolved, lanes: Lanes) -> list[str]:
    """What a user would want to know before the run rather than after it."""
    run, updates, found = config.run, config.run.steps // config.rollout, list[str]()
    if updates < FEW_UPDATES:
        found.append(
            f"only {updates} updates of {config.rollout:,} steps: expect little; raise --steps or lower --horizon"
        )
    if lanes.episode_limit and lanes.episode_limit * run.envs > run.checkpoint_every:
        found.append(
            f"episodes of {lanes.episode_limit:,} steps on {run.envs} lanes outlast the {run.checkpoint_every:,} steps "
            "between checkpoints, where episodes are cut: raise --checkpoint-every"
        )
    if lanes.backend == "yours":
        found.append("no evaluation: a vector environment was passed, and no maker of single ones")
    return found


def spaces_of(lanes: Lanes) -> dict[str, Any]:
    """The spaces as config.json has them; UnsupportedSpace for one that no model can serve."""
    feature_count(lanes.observation_space)
    head_for(lanes.action_space)
    return {"observation": space_to_json(lanes.observation_space), "action": space_to_json(lanes.action_space)}


def build(env: EnvLike, config: Resolved, lanes: Lanes, fresh: bool = True) -> Run:
    """The parts of a run, from its configuration; fresh weights come from torch's global generator."""
    agent = agent_of(config, config.run.device, fresh)
    algorithm = algorithm_named(config.algo)(agent.policy, config.algorithm)
    source = lanes.source(lanes.make, config.algorithm.horizon)
    make_one = None if isinstance(env, MANY) else single(env, config.run.max_episode_steps)
    ledger = Ledger(agent.policy, config.run) if config.run.measures_drift else None
    if ledger is not None and fresh and config.run.drift_reference is not None:
        restore(ledger.reference, reference_of(config), config.run.drift_reference)
    return Run(Path(), config, agent, algorithm, source, make_one, ledger)


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
        policy = outline.to_empty(device=device)
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
