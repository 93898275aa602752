"""Proximo: proximal policy optimization and its family, from CartPole to language models."""

from proximo.errors import (
    CheckpointError,
    ConfigError,
    EnvFailure,
    ExportError,
    MissingExtra,
    NonFiniteError,
    ProximoError,
    RewardError,
    RunFolderError,
    UnknownName,
    UnsupportedSpace,
)
from proximo.models.distributions import head_for
from proximo.models.feed_forward import FeedForward
from proximo.run.agent import Agent
from proximo.run.export import export_run as export
from proximo.run.loading import evaluate_run as evaluate
from proximo.run.loading import load
from proximo.run.run import Run
from proximo.run.session import resume, train

__all__ = [
    "Agent",
    "CheckpointError",
    "ConfigError",
    "EnvFailure",
    "ExportError",
    "FeedForward",
    "MissingExtra",
    "NonFiniteError",
    "ProximoError",
    "RewardError",
    "Run",
    "RunFolderError",
    "UnknownName",
    "UnsupportedSpace",
    "evaluate",
    "export",
    "head_for",
    "load",
    "resume",
    "train",
]
