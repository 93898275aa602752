"""What a run is: everything that was asked for or chosen, resolved, checked, and written to config.json."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from proximo.algorithms import algorithm_named
from proximo.batch import Batch
from proximo.checks import check
from proximo.errors import ConfigError, UnknownName, unknown
from proximo.models.network import SEQUENCE, Network
from proximo.models.own import PARTS
from proximo.run.settings import built
from proximo.sources.options import must_be_harmless, options_from

# What other libraries call a setting.
ELSEWHERE = {
    "learning_rate": "lr",
    "n_steps": "horizon",
    "num_steps": "horizon",
    "n_envs": "envs",
    "num_envs": "envs",
    "n_epochs": "epochs",
    "update_epochs": "epochs",
    "batch_size": "minibatches",
    "num_minibatches": "minibatches",
    "gae_lambda": "lam",
    "clip_range": "clip",
    "clip_coef": "clip",
    "ent_coef": "entropy_coef",
    "vf_coef": "value_coef",
    "total_timesteps": "steps",
}
MOST_THREADS = 256
LARGEST_ROLLOUT = 2**28  # rows; a stranger's config.json may ask for more than there is memory

BackendName = Literal["auto", "sync", "async", "envpool", "tensor"]


@dataclass(frozen=True)
class RunConfig:
    """The numbers of a run that are not the algorithm's."""

    steps: int = 100_000
    """Environment steps to learn from, over all lanes."""
    envs: int = 8
    """Lanes: environments stepped together."""
    seed: int = 0
    """Every random number follows from it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the policy lives; auto takes the GPU for images, and layers or memories of 512 units and more."""
    backend: BackendName = "auto"
    """How lanes are stepped; auto takes what is faster for the environment, and says so."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile policy and update, which takes seconds; auto does it where the run is long enough to gain."""
    overlap: Literal["auto", "on", "off"] = "auto"
    """Let half of the lanes step while the policy acts for the others; auto does it for images, where lanes can."""
    checkpoint_every: int = 100_000
    """Steps between checkpoints; environments restart there (that is what makes resuming exact)."""
    eval_every: int = 100_000
    """Steps between evaluations; 0 evaluates only at the end."""
    eval_episodes: int = 20
    """Episodes of an evaluation."""
    features_every: int = 40_000
    """Steps between looks at the network: feature_rank and dead_units of an update; 0 looks only at the end."""
    max_episode_steps: int | None = None
    """Truncate episodes after this many steps (for environments that never end)."""
    env_options: tuple[str, ...] = ()
    """What the environment is made with, as name=value (a number, true, false, a word)."""
    threads: int = 1
    """Threads torch computes with; small networks lose by a second one."""
    max_kl: float | None = None
    """Most that an update may change the policy: KL(old ‖ new) on its batch, nats; a longer one is cut or undone."""
    stop_drift: float | None = None
    """End the run where KL(reference ‖ policy), nats, on the last batch exceeds this."""
    drift_reference: str | None = None
    """A run's or checkpoint's folder: the policy that drift is measured from; by default the one the run began with."""

    def __post_init__(self) -> None:
        check(self, at_least_one=("steps", "envs", "checkpoint_every", "eval_episodes", "threads"))
        check(self, not_negative=("seed", "eval_every", "features_every"))
        options_from(self.env_options)
        for name, most in (("threads", MOST_THREADS), ("seed", 2**32 - 1)):
            if getattr(self, name) > most:
                raise ConfigError(f"{name} is {getattr(self, name)}: it must be at most {most}")
        if self.max_episode_steps is not None:
            check(self, at_least_one=("max_episode_steps",))
        check(self, positive=tuple(name for name in ("max_kl", "stop_drift") if getattr(self, name) is not None))

    @property
    def options(self) -> dict[str, Any]:
        """The environment's options by name."""
        return options_from(self.env_options)

    @property
    def measures_drift(self) -> bool:
        """Whether every update is measured, and drift.jsonl written."""
        return any(asked is not None for asked in (self.max_kl, self.stop_drift, self.drift_reference))


@dataclass(frozen=True)
class Resolved:
    """A whole run, resolved: what config.json holds."""

    env: str
    algo: str
    preset: str
    run: RunConfig
    algorithm: Any
    network: Network
    registered: bool = True  # env is an id; False for a maker or a vector environment from Python
    spaces: dict[str, Any] = field(default_factory=dict)
    yours: tuple[str, ...] = ()  # the parts of the policy that came from Python, of `PARTS`

    def __post_init__(self) -> None:
        rollout = self.rollout
        if rollout > LARGEST_ROLLOUT:
            raise ConfigError(f"a rollout of {rollout:,} steps is too large: at most {LARGEST_ROLLOUT:,} are collected")
        many = getattr(self.algorithm, "rollouts", 1)
        if many * rollout > LARGEST_ROLLOUT:
            size = f"{many:,} rollouts of {rollout:,} steps are too large"
            raise ConfigError(f"{size}: at most {LARGEST_ROLLOUT:,} are kept; lower --rollouts, --envs or --horizon")
        parts = getattr(self.algorithm, "minibatches", 1)
        if rollout % parts:
            near = [n for n in range(max(1, parts // 2), min(parts, 10_000) * 2) if rollout % n == 0]
            raise ConfigError(
                f"{parts} minibatches do not divide a batch of {rollout} steps ({self.run.envs} envs × "
                f"{self.algorithm.horizon} horizon): try --minibatches {' or '.join(map(str, near)) or 1}"
            )
        self._check_network()
        if self.remembers:
            self.check_sequences(self.sequence)
        if rollout // parts < 2:
            raise ConfigError(f"{parts} minibatches of {rollout} steps leave one step each: at least 2 are needed")
        if self.run.steps < rollout:
            raise ConfigError(
                f"{self.run.steps} steps are fewer than one rollout of {rollout} ({self.run.envs} envs × "
                f"{self.algorithm.horizon} horizon): raise --steps, or lower --envs or --horizon"
            )

    def _check_network(self) -> None:
        """No setting is asked of a part that the user brings, nor one that the algorithm cannot keep its word with."""
        if getattr(self.algorithm, "separate_trunks", False) and self.network.trunk == "shared":
            raise ConfigError(
                f"trunk is shared: {self.algo} fits the value after its step, which would move the policy out of its "
                "trust region; leave --trunk out, or give --trunk separate"
            )
        idle = dict(encoder=("images", "channels", "precision"), core=("memory", "memory_size", "memory_window"))
        for part in self.yours:
            for name in idle.get(part, vars(self.network)):
                if getattr(self.network, name) != getattr(Network(), name):
                    raise ConfigError(f"{name} is set, but you bring {part}=… of your own: leave it out")

    def check_sequences(self, length: int) -> None:
        """ConfigError unless a policy with a memory can learn from whole sequences of this length."""
        horizon, parts = self.algorithm.horizon, getattr(self.algorithm, "minibatches", 1)
        if horizon % length:
            raise ConfigError(
                f"sequences of {length} steps do not divide a horizon of {horizon}: give another --sequence "
                "(--memory and --frame-stack learn from whole ones)"
            )
        if (self.rollout // length) % parts:
            raise ConfigError(
                f"{parts} minibatches do not divide {self.rollout // length} sequences of {length} steps: lower "
                "--minibatches or --sequence"
            )

    @property
    def remembers(self) -> bool:
        """Whether what learns has a memory; a policy that a user brings says so itself."""
        return self.network.remembers or "core" in self.yours

    @property
    def sequence(self) -> int:
        """Steps that a policy with a memory learns from at once."""
        return self.network.sequence or min(SEQUENCE, self.algorithm.horizon)

    @property
    def rollout(self) -> int:
        """Rows of one collection."""
        return self.run.envs * self.algorithm.horizon

    def complete(self, step: int) -> bool:
        """Whether no whole rollout fits into the steps that are left."""
        return step + self.rollout > self.run.steps

    def taken(self, batch: Batch) -> int:
        """The steps of the run that a collection stands for: transitions."""
        return int(batch.mask.sum())

    @property
    def title(self) -> str:
        """What is trained on."""
        return self.env

    @property
    def drift_axis(self) -> str:
        return "KL(reference ‖ policy), nats"

    @property
    def axes(self) -> tuple[str, str]:
        """What a step is, and what a return is, for people."""
        return "environment steps", "return (mean of the last 100 episodes)"

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint must have in common with the run that loads it."""
        return {"env": self.env, "algo": self.algo, "spaces": self.spaces}

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def resolved(
    env: str,
    algo: str,
    preset: str,
    settings: dict[str, Any],
    registered: bool = True,
    yours: tuple[str, ...] = (),
) -> Resolved:
    """Sort flat settings into the dataclasses that own them; UnknownName for one that nobody owns."""
    owners = known_settings(algo)
    for name in settings:
        if name not in owners:
            if name in ELSEWHERE:
                raise UnknownName(f"unknown setting {name!r}: it is called {ELSEWHERE[name]} here")
            raise unknown(f"setting of {algo}", name, owners)
    run, algorithm, network = (
        built(owner, {k: v for k, v in settings.items() if owners[k] is owner})
        for owner in (RunConfig, algorithm_named(algo).Config, Network)
    )
    if getattr(algorithm, "separate_trunks", False) and network.trunk == "auto" and "policy" not in yours:
        network = dataclasses.replace(network, trunk="separate")
    return Resolved(env, algo, preset, run, algorithm, network, registered, yours=yours)


def known_settings(algo: str) -> dict[str, type]:
    """Every setting of a run of this algorithm, and the dataclass that owns it."""
    owners = (RunConfig, algorithm_named(algo).Config, Network)
    return {field.name: owner for owner in owners for field in dataclasses.fields(owner)}


def changed(run: RunConfig, **changes: Any) -> RunConfig:
    """The same with some fields exchanged (None leaves one), checked like any others."""
    return built(RunConfig, {**dataclasses.asdict(run), **{k: v for k, v in changes.items() if v is not None}})


def from_json(tree: Any) -> Resolved:
    """The configuration that `to_json` described; ConfigError for anything else."""
    if not isinstance(tree, dict):
        raise ConfigError("config.json must hold an object")
    names = {f.name: f.type for f in dataclasses.fields(Resolved)}
    if strange := tree.keys() ^ names.keys():
        raise ConfigError(f"config.json: {min(strange)!r} is {'missing' if min(strange) in names else 'unknown'}")
    for name in ("env", "algo", "preset"):
        if not isinstance(tree[name], str):
            raise ConfigError(f"config.json: {name} is {tree[name]!r}, not a string")
    if not isinstance(tree["spaces"], dict) or not isinstance(tree["registered"], bool):
        raise ConfigError("config.json: spaces must be an object and registered true or false")
    listed = isinstance(tree["yours"], (list, tuple))
    if not listed or list(tree["yours"]) != [part for part in PARTS if part in tree["yours"]]:
        raise ConfigError(f"config.json: yours is {tree['yours']!r}, not some of {', '.join(PARTS)}")
    sections = {"run": RunConfig, "algorithm": algorithm_named(tree["algo"]).Config, "network": Network}
    parts = {name: built(owner, tree[name]) for name, owner in sections.items()}
    must_be_harmless(parts["run"].options, "config.json")
    return Resolved(**{**tree, **parts, "yours": tuple(tree["yours"])})
