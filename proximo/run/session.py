"""The public verbs: train, resume, load. Each puts the parts of a run together and hands them to the loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from proximo import ranks
from proximo.algorithms import Expecting, algorithm_named
from proximo.batch import leaves_of
from proximo.errors import CheckpointError, ConfigError
from proximo.models.actor_critic import OURS
from proximo.models.distributions import head_for
from proximo.models.network import Network
from proximo.models.own import MakeCore, MakeEncoder, MakePolicy, Own, must_be_apart, must_be_measured
from proximo.observations import leaves
from proximo.policy import blank
from proximo.presets import preset_for, preset_named
from proximo.run import checkpoint, folder
from proximo.run.config import Resolved, changed, known_settings, resolved
from proximo.run.drive import bring_back, drive
from proximo.run.evaluate import evaluate
from proximo.run.ledger import Ledger
from proximo.run.loading import agent_of, environment_of, must_be_given, reference_of
from proximo.run.machine import choose_compile, choose_device, choose_overlap, computing, has_images
from proximo.run.run import EnvRun, Run, save
from proximo.run.seeding import seed_all
from proximo.run.spaces import space_to_json
from proximo.sources.backends import Lanes, lanes_for
from proximo.sources.envs import EnvSource
from proximo.sources.halves import Halves
from proximo.sources.making import MANY, EnvLike, name_of, single
from proximo.sources.options import merged, options_from, said
from proximo.sources.tensors import TensorSource
from proximo.state import restore

FEW_UPDATES = 10


def train(
    env: EnvLike,
    algo: str = "ppo",
    steps: int | None = None,
    *,
    preset: str = "auto",
    out: str | Path | None = None,
    quiet: bool = False,
    encoder: MakeEncoder | None = None,
    core: MakeCore | None = None,
    policy: MakePolicy | None = None,
    **settings: Any,
) -> EnvRun:
    """Train an agent, from nothing to a run's folder.

    `env` is a Gymnasium id, a callable that makes an environment, or a vector environment. `settings` are the fields
    of RunConfig, of the algorithm's Config and of Network, by name; they stand over the preset's, which stand over
    the defaults. `encoder`, `core` and `policy` make parts of the policy that stand in place of ours (see
    docs/your-own-network.md). Raises a ProximoError, in one line, for what cannot work.
    """
    own = Own(encoder, core, policy)
    if steps is not None:
        settings["steps"] = steps
    if "env_options" in settings:
        settings["env_options"] = said(settings["env_options"])
    if isinstance(env, MANY) and settings.setdefault("envs", env.num_envs) != env.num_envs:
        raise ConfigError(f"envs is {settings['envs']}, but the vector environment has {env.num_envs} lanes")
    config, notes = preset_config(env, algo, preset, settings, own.names)
    return begin(env, config, out, quiet, notes, own)


def algorithm_asked(algo: str | None, config: str | None) -> str:
    """The algorithm of a command line that names one, or a config.json to repeat; ConfigError where these differ."""
    theirs = None if config is None else folder.config_file(Path(config)).algo
    if None not in (algo, theirs) and algo != theirs:
        raise ConfigError(f"--config repeats a run of {theirs}: leave out --algo {algo}")
    return algo or theirs or "ppo"


def preset_config(
    env: EnvLike, algo: str, preset: str, settings: dict[str, Any] | None = None, yours: tuple[str, ...] = ()
) -> tuple[Resolved, list[str]]:
    """The configuration of a preset with settings over it, and a note that says which it is and why.

    A preset says nothing of a policy that is `yours`.
    """
    algorithm_named(algo)
    if isinstance(env, MANY):
        action_space = env.single_action_space
    else:
        one = single(env, **options_from((settings or {}).get("env_options", ())))()
        action_space = one.action_space
        one.close()
    chosen = (
        preset_for(env if isinstance(env, str) else "", action_space, algo)
        if preset == "auto"
        else preset_named(preset)
    )
    owners = known_settings(algo)
    taken = chosen.settings_for(algo, owners)
    if "policy" in yours:
        taken = {name: value for name, value in taken.items() if owners[name] is not Network}
    asked = dict(settings or {})
    if "env_options" in asked:
        asked["env_options"] = merged(taken.get("env_options", ()), asked["env_options"])
    config = resolved(name_of(env), algo, chosen.name, {**taken, **asked}, isinstance(env, str), yours)
    idle = [] if yours else config.network.idle(asked)
    why = "fits the environment" if preset == "auto" else "as asked"
    if preset != "auto" and algo in chosen.algos and algo != chosen.algos[0]:
        why += f"; its numbers are {chosen.algos[0]}'s"
    if algo not in chosen.algos:
        why += f"; {', '.join(taken) or 'nothing'} of it, the rest is made for {chosen.algos[0]}"
    if chosen.task is not None:
        why += f"; {', '.join(chosen.task.settings_for(algo, taken))} of {chosen.task.name}"
    return config, [f"preset {chosen.name} ({why}): {chosen.source}", *idle]


def begin(
    env: EnvLike, config: Resolved, out: str | Path | None, quiet: bool, notes: list[str], own: Own = OURS
) -> EnvRun:
    """Build a run from a resolved configuration, in a new folder, and train it."""
    config, lanes, choices = fitted(env, config)
    with computing(config):
        seed_all(config.run.seed)
        run = build(env, config, lanes, own)
        run.folder = folder.shared_folder(out, config)
        save(run)
        return drive(run, quiet, notes + choices)


def fitted(env: EnvLike, config: Resolved) -> tuple[Resolved, Lanes, list[str]]:
    """The configuration with all that depends on the environment and the machine, the lanes, and notes that say why."""
    device, reason = choose_device(config, env)
    lanes = lanes_for(
        env, of_each(env, config.run.envs), config.run.backend, config.run.max_episode_steps, device, config.run.options
    )
    spaces = spaces_of(lanes)
    if not lanes.in_tensors:  # what is stepped in tensors lives where it was made
        device, reason = choose_device(replace(config, spaces=spaces), env)
    mode, why = choose_compile(replace(config, spaces=spaces))
    overlap, because = choose_overlap(replace(config, spaces=spaces), lanes)
    chosen = dict(device=device, backend="auto" if lanes.backend == "yours" else lanes.backend, compile=mode)
    config = replace(config, run=changed(config.run, **chosen, overlap=overlap), spaces=spaces)
    if config.remembers:
        config = replace(config, network=replace(config.network, sequence=config.sequence))
    if config.network.precision != "float32" and config.run.measures_drift and has_images(config):
        raise ConfigError(
            "max_kl, stop_drift and drift_reference measure more precisely than bfloat16: leave them or --precision out"
        )
    notes = [f"backend {lanes.backend}: {lanes.reason}", f"device {device}: {reason}", f"compile {mode}: {why}"]
    if has_images(config):
        notes.append(f"overlap {overlap}: {because}")
    return config, lanes, notes + cautions(config, lanes)


def resume(
    path: str | Path,
    env: EnvLike | None = None,
    steps: int | None = None,
    device: str | None = None,
    quiet: bool = False,
    stop_drift: float | None = None,
    *,
    encoder: MakeEncoder | None = None,
    core: MakeCore | None = None,
    policy: MakePolicy | None = None,
) -> EnvRun:
    """Continue a run from its newest good checkpoint: exactly as if it had never stopped, where it was killed.

    One that was asked to stop saved off its schedule, and is as good, but not the same (docs/architecture.md).

    `env` is needed where the run was started from Python with a maker or a vector environment; `encoder`, `core` and
    `policy` are those it was started with, where they came from you. `steps` extends the run to that many in all, which
    is not the run of that length from the start either. `device` moves it; the numbers then differ a
    little. `stop_drift` lets a run that strayed go on, or stops one earlier.
    """
    path, own = Path(path), Own(encoder, core, policy)
    config = folder.read_config(path)
    must_be_given(config, own)
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
    c = config.run
    lanes = lanes_for(env, of_each(env, c.envs), c.backend, c.max_episode_steps, c.device, c.options)
    if c.overlap == "on" and lanes.half is None:
        notes.append(f"overlap off: {lanes.whole}; the numbers then differ a little")
    if spaces_of(lanes) != config.spaces:
        raise CheckpointError(f"{path} was trained on other spaces than {name_of(env)} has here")
    with computing(config):
        seed_all(config.run.seed)
        run = build(env, config, lanes, own, fresh=saved is None)
        run.folder = path
        bring_back(run, saved)
        folder.go_on(path, config, run.step)
        notes.append(f"resuming {path} at step {run.step:,}")
        return drive(run, quiet, notes)


def of_each(env: EnvLike, lanes: int) -> int:
    """How many of a run's lanes each of several processes steps; ConfigError where they cannot be shared."""
    many = ranks.launched()
    if many > 1 and isinstance(env, MANY):
        raise ConfigError("several processes cannot share one vector environment: pass a maker of single ones")
    if lanes % many:
        raise ConfigError(f"envs is {lanes}, which {many} processes cannot share evenly")
    return lanes // many


def cautions(config: Resolved, lanes: Lanes) -> list[str]:
    """What a user would want to know before the run rather than after it."""
    run, updates, found = config.run, config.run.steps // config.rollout, list[str]()
    if updates < FEW_UPDATES:
        found.append(
            f"no more than about {updates} updates, of {config.rollout:,} steps each: expect little; raise --steps or "
            "lower --horizon"
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
    leaves(lanes.observation_space)
    head_for(lanes.action_space)
    return {"observation": space_to_json(lanes.observation_space), "action": space_to_json(lanes.action_space)}


def build(env: EnvLike, config: Resolved, lanes: Lanes, own: Own = OURS, fresh: bool = True) -> EnvRun:
    """The parts of a run, from its configuration; fresh weights come from torch's global generator."""
    agent = agent_of(config, config.run.device, own, fresh)
    policy, shown = agent.policy, agent.observation_space
    if leaves_of(policy.initial(1)):
        config.check_sequences(policy.sequence)
    if own.names and getattr(config.algorithm, "separate_trunks", False):
        must_be_apart(policy, shown, config.algo)
    algorithm = algorithm_named(config.algo)(policy, config.algorithm)
    if isinstance(algorithm, Expecting):
        algorithm.expect(blank(policy, shown, config.algorithm.horizon, config.run.envs))
    source = source_of(config, lanes, of_each(env, config.run.envs))
    ledger = Ledger(policy, config.run) if config.run.measures_drift else None
    if ledger is not None and own.names:
        must_be_measured(policy, shown, own.names)
    if ledger is not None and fresh and config.run.drift_reference is not None:
        restore(ledger.reference, reference_of(config, policy, own), config.run.drift_reference)
    judge = None
    if not isinstance(env, MANY):
        make, c = single(env, config.run.max_episode_steps, **config.run.options), config.run
        judge = lambda stop: evaluate(agent, make, c.eval_episodes, c.seed, stop) if ranks.first() else None  # noqa: E731
    return Run(Path(), config, agent, algorithm, source, judge, ledger)


def source_of(config: Resolved, lanes: Lanes, count: int) -> EnvSource | Halves | TensorSource:
    """What collects from this process's `count` lanes."""
    horizon, before = config.algorithm.horizon, ranks.rank() * count
    if lanes.in_tensors:
        if ranks.size() > 1:
            raise ConfigError("several processes cannot share lanes in tensors: take another backend, or one process")
        return TensorSource(lanes.make, horizon)
    if config.run.overlap == "on" and lanes.half is not None:
        return Halves(lanes.half, horizon, count, before)
    return EnvSource(lanes.make, horizon, before)
