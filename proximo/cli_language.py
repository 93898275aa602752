"""The `proximo language` command: train, ask and judge language models. Each verb is a function."""

import sys
from collections.abc import Callable
from json import dumps
from pathlib import Path
from typing import Annotated, Any

import tyro

from proximo import ranks
from proximo.algorithms.language import LANGUAGE
from proximo.errors import ConfigError, unknown
from proximo.run import folder
from proximo.run.language import chatting, session
from proximo.run.language.build import Device, LanguageTrain
from proximo.run.language.plan import LanguagePlan, LanguageRun, known, must_be_setting

ABOUT = "Train language models: supervised, on preferences, on rewards. Ask and judge them."
Dir = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
Inline = tyro.conf.arg(name="")  # a dataclass whose fields are flags under their own names


def train_verb(algo: str) -> Callable[..., LanguageTrain]:
    """The verb that trains with an algorithm."""
    config_class = LANGUAGE[algo].Config

    def train(
        model: str,
        data: str,
        out: Path | None = None,
        quiet: tyro.conf.FlagCreatePairsOff[bool] = False,
        run: Annotated[LanguageRun, Inline] = LanguageRun(),  # noqa: B008
        algorithm: Annotated[config_class, Inline] = config_class(),  # type: ignore[valid-type]  # noqa: B008
    ) -> LanguageTrain:
        return session.begin(LanguagePlan(algo, model, data, run, algorithm), data, out=out, quiet=quiet)

    title = (sys.modules[LANGUAGE[algo].__module__].__doc__ or "").strip()
    train.__doc__ = f"""{title}

        {(LANGUAGE[algo].__doc__ or "").strip()}

        Args:
            model: a folder with a model and its tokenizer, a finished run's folder, or a hub id.
            data: a .jsonl or .parquet file, a folder or a hub id of a data set.
            out: the run's folder; runs/… by default.
            quiet: show nothing but the result.
    """
    return train


def chat(
    dir: Dir, prompt: str | None = None, max_tokens: int | None = None, temperature: float = 1.0, seed: int = 0
) -> None:
    """Complete what you type, with a run's newest good checkpoint; an empty line ends it.

    Args:
        dir: the run's folder.
        prompt: complete this alone, and end.
        max_tokens: longest completion; by default as the run had it, or 128.
        temperature: 0 takes the most likely token each time.
        seed: of the tokens that are drawn.
    """
    chatting.chat(dir, prompt, max_tokens, temperature, seed)


def eval_(
    dir: Dir,
    data: str | None = None,
    prompts: int = 64,
    against: str | None = None,
    temperature: float | None = None,
    rewards: tuple[str, ...] = (),
    reward_model: str | None = None,
    max_tokens: int | None = None,
    json: tyro.conf.FlagCreatePairsOff[bool] = False,
) -> None:
    """Complete prompts with a run's newest good checkpoint: reward, KL to the reference, length, and who wins.

    A run that learned from a data set is judged by that, unless a judge is named: how likely it finds held-out
    texts, or whether it prefers what was chosen.

    Args:
        dir: the run's folder.
        data: other prompts than those that the run held out.
        prompts: how many.
        against: another run's folder or model: the share of prompts on which this one gets the larger reward.
        temperature: in place of the run's; 0 takes the most likely token each time.
        rewards: who judges, in place of the run's own reward: built-in rewards by name.
        reward_model: who judges: a trained reward model, the folder of its run.
        max_tokens: longest completion, in place of the run's.
        json: print one JSON object.
    """
    found = chatting.evaluated(dir, data, prompts, against, temperature, None, rewards, reward_model, max_tokens)
    print(dumps(found.row()) if json else "\n".join(found.summary()))


def execute(argv: list[str]) -> int:
    """Parse what follows `proximo language`, and do it; the exit code."""
    must_be_known(argv)
    verbs: dict[str, Any] = {**{name: train_verb(name) for name in LANGUAGE}, "chat": chat, "eval": eval_}
    prog = "proximo language"
    if argv[0] in verbs:
        done: Any = tyro.cli(verbs[argv[0]], args=argv[1:], prog=f"{prog} {argv[0]}")
    else:
        done = tyro.extras.subcommand_cli_from_dict(verbs, args=argv, prog=prog, description=ABOUT)
    if done is None:
        return 0
    if ranks.first():
        print(*done.summary(), sep="\n")
    return done.code


def is_ours(path: Path) -> bool:
    """Whether a folder holds a run of a language model."""
    return (path / folder.CONFIG).exists() and isinstance(folder.read_plan(path), LanguagePlan)


def resume(
    path: Path, steps: int | None, stop_drift: float | None, device: Device | None, quiet: bool
) -> LanguageTrain:
    """Continue a run from its newest good checkpoint."""
    return session.resume(path, steps=steps, stop_drift=stop_drift, device=device, quiet=quiet)


def must_be_known(argv: list[str]) -> None:
    """UnknownName for an algorithm or a flag that is not there, before a parser says it at length."""
    if argv and not argv[0].startswith("-") and argv[0] not in (*LANGUAGE, "chat", "eval"):
        raise unknown("language algorithm", argv[0], (*LANGUAGE, "chat", "eval"))
    if argv and argv[0] in LANGUAGE:
        settings = (*known(argv[0]), "model", "data", "out", "quiet", "help")
        for name in (word[2:].partition("=")[0].replace("-", "_") for word in argv if word.startswith("--")):
            if name.removeprefix("no_") not in settings:
                must_be_setting(name, settings)
    if not argv:
        raise ConfigError(f"which? proximo language {'|'.join((*LANGUAGE, 'chat', 'eval'))} (--help tells more)")
