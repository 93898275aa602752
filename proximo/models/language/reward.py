"""A reward model: a trunk with one number at the end of a text (Ziegler et al. 2019, arXiv:1909.08593)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from proximo.batch import Batch
from proximo.decoder.transformer import base_of, knows, precise, read
from proximo.models.language.critic import head, looked
from proximo.models.language.hub import trunk_of, width_of
from proximo.models.language.reading import last_layer
from proximo.models.language.rows import Rows, flat, rows_after
from proximo.models.language.sharding import shard
from proximo.policy import Evaluation


class RewardModel(nn.Module):
    """Evaluates texts: `value` is the reward after every token, of which the one after the last live token counts.

    reward = gain · head(last layer) + bias; `gain` and `bias` bring it to mean 0 and deviation 1 on a reference's texts
    (`normalize`). The head begins at N(0, 1/(d + 1)).
    """

    gain: Tensor
    bias: Tensor

    def __init__(
        self, model: Any, precision: str = "float32", saves: Callable[[str], bool] = lambda name: True
    ) -> None:
        """`model` is a causal language model, whose trunk is taken."""
        super().__init__()
        self.trunk, self.precision, width = trunk_of(base_of(model)), precision, width_of(model)
        self._saves = saves
        self._model = (model,)  # in a tuple: its head over the vocabulary is no part of this model
        self.head = head(width, 1 / math.sqrt(width + 1))
        self.register_buffer("gain", torch.ones(()))
        self.register_buffer("bias", torch.zeros(()))
        self.eval()

    @property
    def model(self) -> Any:
        """The causal language model whose trunk this is."""
        return self._model[0]

    def shard(self) -> None:
        """Leave every rank its part of the trunk."""
        shard([self.trunk], self.device.type)

    @property
    def device(self) -> torch.device:
        return self.gain.device

    def evaluate(self, batch: Batch) -> Evaluation:
        """Rewards in the shape of `mask`, [T, N] or [T, N, 2]; a reward model has no actions of its own."""
        lanes = flat(batch)
        with self.computing():
            found = precise(self.head(self.seen(rows_after(lanes), len(lanes.mask))))
        value = (self.gain * found.squeeze(-1).T + self.bias).view(batch.mask.shape)
        nobody: Any = None  # no actions, no distribution over them
        return Evaluation(torch.zeros_like(value), value, nobody, value[..., None])

    def seen(self, rows: Rows, steps: int) -> Tensor:
        """What the last layer makes of each row's last `steps` tokens, [M, steps, D]; before them is the prompt."""
        if knows(self.model):
            return last_layer(read(self.model), rows, steps, prompt=rows.token.shape[1] - steps)
        return looked(self.trunk, rows)[:, -steps:]

    @torch.no_grad()
    def normalize(self, scores: Tensor) -> None:
        """Shift and scale so that these texts' rewards, [N], get mean 0 and deviation 1."""
        deviation = scores.std().clamp(min=1e-8)
        self.bias.copy_((self.bias - scores.mean()) / deviation)
        self.gain.div_(deviation)

    def as_it_learns(self) -> None:
        """Without shift and scale, as it was before `normalize`: so that a run that goes on learns as if in one."""
        self.gain.fill_(1)
        self.bias.zero_()

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """What training changes."""
        return {name: x for name, x in super().state_dict(*args, **kwargs).items() if self._saves(name)}

    @property
    def vocabulary(self) -> int:
        """It says one number of a text."""
        return 1

    def observe(self, batch: Batch) -> None:
        """Nothing: no statistics are kept while it learns."""

    @contextmanager
    def computing(self) -> Iterator[None]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            yield
