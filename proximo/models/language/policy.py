"""A causal language model of transformers as a policy: a token is a step, a sequence a lane."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from proximo import ranks
from proximo.batch import Batch
from proximo.decoder.transformer import knows, precise, read
from proximo.models.distributions.discrete import Categorical
from proximo.models.language.critic import Critic
from proximo.models.language.reading import last_layer
from proximo.models.language.rows import Rows, flat, rows_of, together
from proximo.models.language.sharding import shard
from proximo.policy import Evaluation


class Sampled(NamedTuple):
    """What is known of a distribution that was sampled from: what was drawn, and its log-probability."""

    action: Tensor  # [T, N]
    logp: Tensor  # [T, N]

    def kl(self, other: Any) -> Tensor:
        """An unbiased estimate of KL(self ‖ other), nats, from the one sample: r − 1 − log r (Schulman's k3)."""
        log_ratio = other.logp(self.action) - self.logp
        return log_ratio.exp() - 1 - log_ratio


class LanguagePolicy(nn.Module):
    """Evaluates whole sequences; who draws them is a `Generator` (sources/generation.py), with this policy's `model`.

    `model` is any causal language model of transformers, `reference` a frozen one of the same kind (or a block in which
    `model` is it, as with adapters that are switched off), `critic` says what a state is worth. Logits are divided by
    `temperature` in policy and reference, while sampling and while learning. `precision` bfloat16 multiplies in it
    (torch.autocast); parameters, logits and losses stay float32.
    """

    def __init__(
        self,
        model: Any,
        reference: Any = None,
        critic: Critic | None = None,
        temperature: float = 1.0,
        precision: str = "float32",
        saves: Callable[[str], bool] = lambda name: True,
    ) -> None:
        super().__init__()
        self.model, self.critic = model, critic
        self._reference = (reference,)  # in a tuple: no part of what learns, is counted or saved
        self.temperature, self.precision, self._saves = temperature, precision, saves
        self.eval()  # dropout would make π differ from the π that sampled

    def shard(self) -> None:
        """Leave every rank its part of the transformers: the policy's, the critics', the reference."""
        (reference,), trunks = self._reference, [] if self.critic is None else [*self.critic.trunks]
        shard([self.model, *trunks, *([reference] if isinstance(reference, nn.Module) else [])], self.device.type)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def critics(self) -> int:
        """How many there are."""
        return 0 if self.critic is None else self.critic.count

    def evaluate(self, batch: Batch) -> Evaluation:
        """Log-probability, value and distribution of whole lanes [T, N], or of pairs [T, N, 2]: like `mask`."""
        lanes = flat(batch)
        rows, steps = rows_of(lanes), len(lanes.mask)
        with self.computing():
            logits, last = self.forward_rows(self.model, rows, steps, self.critic is not None and self.critic.shares)
            values = self.values(rows, steps, last, logits)
        found = self.distribution(logits)
        shape = batch.mask.shape
        values = values.unflatten(1, shape[1:])
        everything = Categorical(found.logp_all.unflatten(1, shape[1:]))
        return Evaluation(found.logp(lanes.action).view(shape), values.mean(-1), everything, values)

    def distribution(self, logits: Tensor) -> Categorical:
        """Of logits [M, T, V] as the model gives them: over actions [T, M]."""
        logits = precise(logits) if self.temperature == 1 else precise(logits) / self.temperature
        return Categorical(Categorical.from_logits(logits).logp_all.transpose(0, 1))

    def values(self, rows: Rows, steps: int, last: Tensor | None, like: Tensor) -> Tensor:
        """What the critics say of the last `steps` tokens, [T, M, K]; zeros [T, M, 1] where there are none."""
        if self.critic is None:
            return like.new_zeros(steps, len(rows.token), 1, dtype=torch.float32)
        return precise(self.critic(rows, steps, last)).transpose(0, 1)

    @staticmethod
    def forward_rows(model: Any, rows: Rows, steps: int, with_hidden: bool = False) -> tuple[Tensor, Tensor | None]:
        """Logits [M, T, V] of the last `steps` tokens of each row; and what the last layer makes of them, [M, T, D].

        By the forward pass that our decoder samples with, where it knows the model; else by the model's own.
        """
        if knows(model):
            decoder = read(model)
            x = last_layer(decoder, rows, steps, prompt=rows.token.shape[1] - steps + 1)
            return decoder.head(x), x
        out = model(
            input_ids=rows.token, attention_mask=rows.seen(), position_ids=rows.position, use_cache=False,
            logits_to_keep=steps, output_hidden_states=with_hidden,
        )  # fmt: skip
        return out.logits, out.hidden_states[-1][:, -steps:] if with_hidden else None

    @torch.no_grad()
    def reference_logp(self, batch: Batch) -> Tensor:
        """What the reference says of the actions, like `mask`; at the same temperature."""
        lanes = flat(batch)
        (reference,) = self._reference
        borrowed = nullcontext(reference) if isinstance(reference, nn.Module) else reference()
        with borrowed as model, self.computing():
            logits, _ = self.forward_rows(model or self.model, rows_of(lanes), len(lanes.mask))
        return self.distribution(logits).logp(lanes.action).view(batch.mask.shape)

    @property
    def has_reference(self) -> bool:
        return self._reference[0] is not None

    @contextmanager
    def computing(self) -> Iterator[None]:
        """A block in which products are taken in the policy's precision."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            yield

    @property
    def vocabulary(self) -> int:
        """Tokens that it may choose: what makes logits large."""
        return self.model.get_output_embeddings().weight.shape[0]

    def observe(self, batch: Batch) -> None:
        """Nothing: a language model keeps no statistics of its inputs."""

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """What training changes: all of it, or adapters and heads alone where the rest is frozen."""
        return {name: x for name, x in super().state_dict(*args, **kwargs).items() if self._saves(name)}


def in_pieces(batch: Batch, lanes: int | None, f: Callable[[Batch], Any], vocabulary: int = 1) -> Any:
    """f of all lanes, so many at a time (None: as is best), without gradients: a tensor, or some, [T, N, ...].

    Where there are several ranks, each looks at its share of the lanes.
    """
    count = batch.mask.shape[1]
    mine = batch if ranks.size() == 1 else batch.part(ranks.share(count, batch.mask.device).places)
    here, lanes = mine.mask.shape[1], lanes or together(mine, vocabulary)
    with torch.no_grad():
        found = [f(mine.map(lambda x: x[:, i : i + (lanes or here)])) for i in range(0, here, lanes or here)]  # noqa: B023
    if isinstance(found[0], tuple):
        return tuple(ranks.gathered(torch.cat(parts, 1), count, 1) for parts in zip(*found, strict=True))
    return ranks.gathered(torch.cat(found, 1), count, 1)
