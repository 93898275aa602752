"""Language models from Python: `language.train(model, data, "grpo", reward=…)`, `resume`, `load`, `evaluate`."""

from proximo.run.language.chatting import evaluated as evaluate
from proximo.run.language.session import load, resume, train
from proximo.run.language.speaker import Speaker

__all__ = ["Speaker", "evaluate", "load", "resume", "train"]
