"""The errors a user can cause, each one line that says what was wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

LONGEST = 1000  # characters; a stranger's file may bring any text into a message
SHORT = ("MemoryError", "DefaultCPUAllocator")  # OutOfMemoryError of a GPU, Python's, and what a RuntimeError says


class ProximoError(Exception):
    """Base of every error the package raises on purpose; the command shows it as one line and exits with 2."""

    def __str__(self) -> str:
        """The message on one printable line, whatever names and texts went into it."""
        text = super().__str__()
        line = " ".join("".join(c if c.isprintable() else " " for c in text[: 2 * LONGEST]).split())
        return line if len(line) <= LONGEST else f"{line[:LONGEST]}…"


class ConfigError(ProximoError, ValueError):
    """A setting that cannot work."""


class UnknownName(ConfigError):
    """A name that no registry knows."""


class UnsupportedSpace(ProximoError, TypeError):
    """An observation or action space that no model here can serve."""


class EnvFailure(ProximoError, RuntimeError):
    """An environment that raised, or broke the interface it promised."""


class RewardError(ProximoError, RuntimeError):
    """A reward function that raised, or returned what is no score of each completion."""


class GenerationError(ProximoError, RuntimeError):
    """An engine that did not complete the prompts it was given."""


class MissingExtra(ProximoError, ImportError):
    """An optional dependency that is not installed."""


def install(extra: str) -> str:
    """What to type where an extra is missing."""
    return f'pip install ".[{extra}]" in the folder of Proximo'


class RunFolderError(ProximoError):
    """A folder that is no run, or cannot become one."""


class CheckpointError(ProximoError):
    """A checkpoint that cannot be written, or must not be trusted."""


class ExportError(ProximoError, RuntimeError):
    """A program that cannot be made of an agent, or that does something else."""


class NonFiniteError(ProximoError, FloatingPointError):
    """A NaN or an infinity, stopped before it reached the weights."""


class RankLost(ProximoError, RuntimeError):
    """A process of a run of several that ended, or no longer agrees with the others."""


class OutOfMemory(ProximoError, MemoryError):
    """More at once than the machine's memory, or the GPU's, holds."""


class StaleGraph(ProximoError, RuntimeError):
    """A compiled graph that no longer computes what it was traced from."""


@contextmanager
def memory_told() -> Iterator[None]:
    """A block that raises OutOfMemory where memory ends, whoever found that out."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        if isinstance(error, ProximoError) or not any(sign in text or sign in type(error).__name__ for sign in SHORT):
            raise
        advice = "evaluate less at once (language: --micro-batch, --at-once, --checkpointing), or collect less"
        raise OutOfMemory(f"memory ended ({text[:160] or type(error).__name__}): {advice}") from None


def unknown(kind: str, name: str, known: Iterable[str], hint: str = "") -> UnknownName:
    """An error that names the closest known names (or, where few, all of them); `hint` says what else helps."""
    known = sorted(known)
    close = difflib.get_close_matches(name[:LONGEST], known, n=3, cutoff=0.5)
    close = close or difflib.get_close_matches(name[:LONGEST].lower(), known, n=3, cutoff=0.5)
    if close:
        advice = f"did you mean {' or '.join(close)}?{hint and f' ({hint})'}"
    elif len(known) <= 40:
        advice = f"known: {', '.join(known)}{hint and f' ({hint})'}"
    else:
        advice = hint or f"there are {len(known)} known names"
    return UnknownName(f"unknown {kind} {name!r}: {advice}")
