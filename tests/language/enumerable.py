"""A language of 8 symbols and 4 tokens: all of its 4,096 strings, and a policy that is a table of every prefix."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from proximo.batch import Batch
from proximo.models.distributions.discrete import Categorical

SYMBOLS, TOKENS = 8, 4
STATES = sum(SYMBOLS**t for t in range(TOKENS))  # prefixes that a token follows
STOP = 7  # where completions may end


class Opinion(NamedTuple):
    """An evaluation of a policy with several critics."""

    logp: Tensor
    value: Tensor
    distribution: Categorical
    values: Tensor


class Tabular(nn.Module):
    """A softmax and `critics` values for each prefix of each prompt, float64."""

    sequence = TOKENS

    def __init__(self, prompts: int = 1, critics: int = 1, seed: int = 0, scale: float = 1.0, temperature: float = 1.0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        normal = torch.randn(prompts, STATES, SYMBOLS, generator=generator, dtype=torch.float64)
        self.logits = nn.Parameter(scale * normal)
        self.table = nn.Parameter(torch.randn(prompts, STATES, critics, generator=generator, dtype=torch.float64) / 10)
        self.temperature = temperature

    def distribution(self, token: Tensor) -> tuple[Categorical, Tensor]:
        """What follows each token [T, ...] of sequences that begin with the number of a prompt; and the values."""
        prompt, prefix, first, states = token[0], torch.zeros_like(token[0]), 0, []
        for t in range(len(token)):
            prefix = prefix if t == 0 else prefix * SYMBOLS + token[t]
            states.append((first + prefix) % STATES)  # rows past the last token are padding
            first += SYMBOLS**t
        state = torch.stack(states)
        logits = self.logits[prompt.expand_as(state), state] / self.temperature
        return Categorical.from_logits(logits), self.table[prompt.expand_as(state), state]

    def evaluate(self, batch: Batch) -> Opinion:
        distribution, values = self.distribution(batch.observation["token"])
        return Opinion(distribution.logp(batch.action), values.mean(-1), distribution, values)

    @torch.no_grad()
    def sample(self, prompt: Tensor) -> Tensor:
        """Completions [TOKENS, N] of prompts [N], from torch's global generator."""
        seen = prompt.unsqueeze(0)
        for _ in range(TOKENS):
            following = self.distribution(seen)[0].logp_all[-1].exp().multinomial(1).squeeze(-1)
            seen = torch.cat([seen, following.unsqueeze(0)])
        return seen[1:]


def every_string() -> Tensor:
    """All strings, [TOKENS, 4096], the last token the fastest."""
    return torch.cartesian_prod(*[torch.arange(SYMBOLS)] * TOKENS).T.contiguous()


def written(action: Tensor, prompt: Tensor, mask: Tensor | None = None) -> Batch:
    """A batch of texts [T, N] after prompts [N], with no more than a text has."""
    token = torch.cat([prompt.unsqueeze(0), action[:-1]])
    position = torch.arange(len(action)).view(-1, *[1] * (action.dim() - 1)).expand_as(action)
    empty = torch.zeros(1, *action.shape[1:2], 0, *action.shape[2:], dtype=torch.int64)
    mask = torch.ones_like(action, dtype=torch.bool) if mask is None else mask
    observation = {"token": token, "position": position}
    return Batch(observation=observation, action=action, mask=mask, memory={"token": empty, "live": empty.bool()})


@torch.no_grad()
def collected(
    policy: Tabular, reference: Tabular, action: Tensor, prompt: Tensor, score: Tensor, **columns: Any
) -> Batch:
    """A batch of completions [T, N] that score [N] at their end, grouped by prompt, with all that a source may give."""
    batch = written(action, prompt, columns.pop("mask", None))
    mask = batch.mask
    last = mask & ~torch.cat([mask[1:], torch.zeros_like(mask[:1])])
    mine = policy.evaluate(batch)
    value = torch.where(mask, mine.value, 0)
    following = torch.cat([value[1:], torch.zeros_like(value[:1])])
    return batch.replace(
        terminated=last, truncated=torch.zeros_like(mask), reward=torch.where(last, score, 0.0), logp=mine.logp,
        ref_logp=reference.evaluate(batch).logp, value=value, values=mine.values, group=prompt.expand_as(action),
        next_value=torch.where(last, 0, following),
    ).replace(**columns)  # fmt: skip


def until_stop(action: Tensor) -> Tensor:
    """The live rows of completions that end with their first STOP: [T, N] bool."""
    stopped = (action == STOP).cumsum(0)
    return torch.cat([torch.ones_like(stopped[:1]), 1 - stopped[:-1].clamp(max=1)]).bool()


def logp_of_all(policy: Tabular) -> Tensor:
    """Log-probabilities of all strings after prompt 0: [4096], with gradients."""
    strings = every_string()
    return policy.evaluate(written(strings, torch.zeros_like(strings[0]))).logp.sum(0)


def optimum(reference: Tabular, reward: Tensor, beta: float) -> Tabular:
    """π* ∝ π_ref e^{r/β} of rewards [4096], as a table of its conditionals after prompt 0."""
    log = (logp_of_all(reference).detach() + reward / beta).log_softmax(0).view([SYMBOLS] * TOKENS)
    levels = []
    for t in range(TOKENS):
        rest = list(range(t + 1, TOKENS))
        levels.append((log.logsumexp(rest) if rest else log).reshape(-1, SYMBOLS))
    best = Tabular()
    best.logits.data[0] = torch.cat(levels)
    return best


@torch.no_grad()
def divergence(policy: Tabular, other: Tabular) -> float:
    """KL(policy ‖ other) over all strings after prompt 0, nats."""
    mine, theirs = logp_of_all(policy), logp_of_all(other)
    return (mine.exp() * (mine - theirs)).sum().item()
