"""Language models from Python: `language.train(model, data, "grpo", reward=…)`, `resume`, `load`, `evaluate`.

`judge(folder)` is a trained reward model as a reward: `proximo.rewards.pessimistic([judge(a), judge(b)])` an ensemble.
"""

from proximo.run.language.chatting import evaluated as evaluate
from proximo.run.language.session import judge, load, resume, train
from proximo.run.language.speaker import Speaker

__all__ = ["Speaker", "evaluate", "judge", "load", "resume", "train"]
