"""What `proximo train` and `proximo profile` take: their flags, and what is parsed from them."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tyro

from proximo.models.network import Network
from proximo.run.config import RunConfig

Inline = tyro.conf.arg(name="")  # a dataclass whose fields are flags under their own names


class Defaults(NamedTuple):
    """What the flags of `train` start from: the bare defaults, then a preset's, or a config file's."""

    algorithm: Any
    run: RunConfig = RunConfig()
    network: Network = Network()


class Request(NamedTuple):
    """A parsed `proximo train` or `proximo profile`."""

    env: str | None
    algo: str
    preset: str
    out: Path | None
    config: Path | None
    quiet: bool
    seeds: str | None
    jobs: int | None
    algorithm: Any
    run: RunConfig
    network: Network
    form: Literal["table", "json"] | None = None  # of a profile; None trains


def train_verb(defaults: Defaults) -> Callable[..., Request]:
    """The train verb with these defaults; what it parses is a Request."""
    config_class = type(defaults.algorithm)

    def train(
        env: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="ENV")] = None,
        algo: str = "ppo",
        preset: str = "auto",
        out: Path | None = None,
        config: Path | None = None,
        quiet: tyro.conf.FlagCreatePairsOff[bool] = False,
        seeds: str | None = None,
        jobs: int | None = None,
        run: Annotated[RunConfig, Inline] = defaults.run,
        algorithm: Annotated[config_class, Inline] = defaults.algorithm,  # type: ignore[valid-type]
        network: Annotated[Network, Inline] = defaults.network,
    ) -> Request:
        """Train an agent on a Gymnasium environment.

        The flags you give stand over the preset, which stands over the defaults: `proximo train ENV --help` shows what
        the preset gives this environment.

        Args:
            env: the environment's id, for example CartPole-v1.
            algo: the algorithm; `proximo list` shows them.
            preset: tuned settings; auto takes what fits the environment.
            out: the run's folder; runs/… by default.
            config: a config.json to repeat; flags stand over it.
            quiet: show nothing but the result.
            seeds: train several at once, such as 0-9 or 0,3,7; their runs lie together in one folder.
            jobs: how many of the seeds at a time; as many as there are cores by default.
        """
        return Request(env, algo, preset, out, config, quiet, seeds, jobs, algorithm, run, network)

    return train


def profile_verb(defaults: Defaults) -> Callable[..., Request]:
    """The profile verb with these defaults; what it parses is a Request too."""
    config_class = type(defaults.algorithm)

    def profile(
        env: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="ENV")] = None,
        algo: str = "ppo",
        preset: str = "auto",
        config: Path | None = None,
        json: tyro.conf.FlagCreatePairsOff[bool] = False,
        run: Annotated[RunConfig, Inline] = defaults.run,
        algorithm: Annotated[config_class, Inline] = defaults.algorithm,  # type: ignore[valid-type]
        network: Annotated[Network, Inline] = defaults.network,
    ) -> Request:
        """Train for some seconds and show where the time goes, what each part could take at best, and what to do.

        The flags are those of train, and make the same run; nothing of it is kept.

        Args:
            env: the environment's id, for example CartPole-v1.
            algo: the algorithm; `proximo list` shows them.
            preset: tuned settings; auto takes what fits the environment.
            config: a config.json to take the settings from; flags stand over it.
            json: print one JSON object.
        """
        form = "json" if json else "table"
        return Request(env, algo, preset, None, config, json, None, None, algorithm, run, network, form)

    return profile
