"""Experience from a language model: prompts are drawn, it completes them, rewards say what that is worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from proximo import ranks
from proximo.batch import Batch, leaves_of, with_leaves
from proximo.errors import GenerationError
from proximo.models.language.policy import LanguagePolicy, Sampled, in_pieces
from proximo.models.language.sharding import brought_together
from proximo.reduce import masked_mean
from proximo.reference import lane_kl
from proximo.rewards import Reward, scores
from proximo.sources.generation import Completions, Generator
from proximo.sources.sampling import Sampling
from proximo.sources.text.examples import Example
from proximo.sources.text.loader import Loader
from proximo.sources.text.padding import left

ALWAYS = ("length", "ended", "prompt_ids", "completion_ids")  # what rewards may ask for, whatever the data set has


class TokenSource:
    """Collects `prompts` × `group` completions: batches [T, N], N = prompts · group, those of a prompt side by side.

    `decode` turns token ids into a text without special tokens. `at_once` is how many lanes the reference and the
    critics look at together. With `judges_again` the learner says itself how likely it found the tokens, and what the
    generator said is `sampler_logp`: for engines that compute otherwise. `resample` is how often prompts whose
    completions all scored alike are exchanged for the next ones (DAPO, Yu et al. 2025, arXiv:2503.14476).
    """

    def __init__(
        self,
        loader: Loader[Example],
        generator: Generator,
        sampling: Sampling,
        reward: Reward,
        decode: Callable[[Sequence[int]], str],
        prompts: int,
        group: int,
        at_once: int | None = None,
        judges_again: bool = False,
        resample: int = 0,
    ) -> None:
        self.loader, self.generator, self.sampling, self.reward = loader, generator, sampling, reward
        self.decode, self.prompts, self.group, self.at_once = decode, prompts, group, at_once
        self.judges_again, self.resample = judges_again, resample
        self.episodes = Completed()

    def restart(self, seed: int) -> None:
        """Nothing is open between two collections."""

    def close(self) -> None: ...

    def state_tensors(self) -> dict[str, Tensor]:
        return {**self.loader.state_tensors(), **self.episodes.state_tensors()}

    def collect(self, policy: LanguagePolicy) -> Batch:
        """Draw prompts, complete and reward them; torch's global generator is what completions are drawn with."""
        batch, _ = self.rewarded(policy, self.loader.draw(self.prompts), self.group)
        for _ in range(self.resample):
            alike = scored_alike(batch, self.group)
            if not alike.any():
                break
            more, _ = self.rewarded(policy, self.loader.draw(int(alike.sum())), self.group)
            batch = exchanged(batch, alike, more, self.group, self.sampling.pad)
        self.episodes.add(batch)
        return batch

    def rewarded(self, policy: LanguagePolicy, asked: Sequence[Example], group: int) -> tuple[Batch, list[str]]:
        """Completions of these prompts, so many of each, with their rewards; and as texts."""
        batch = self.completed(policy, asked, group)
        texts = [self.decode(ids) for ids in written(batch)]
        lanes = [each for each in asked for _ in range(group)]
        score = self.scores(lanes, texts, told(lanes, batch), group).to(policy.device)
        return batch.replace(reward=torch.where(batch.terminated, score, 0)), texts

    def scores(
        self, lanes: Sequence[Example], texts: list[str], columns: Mapping[str, list[Any]], group: int
    ) -> Tensor:
        """What completions are worth, [N]: every rank asks for those of its share of the prompts."""
        index, own = ranks.share(len(lanes) // group)
        mine = [prompt * group + i for prompt in index[own].tolist() for i in range(group)]
        found = torch.zeros(len(index) * group)
        if mine:
            given = {name: [column[i] for i in mine] for name, column in columns.items()}
            prompts, written = [lanes[i].text for i in mine], [texts[i] for i in mine]
            with ranks.apart():
                found[: len(mine)] = torch.tensor(scores(self.reward, prompts, written, given))
        return ranks.gathered(found, len(lanes))

    def completed(self, policy: LanguagePolicy, asked: Sequence[Example], group: int) -> Batch:
        """The prompts' completions as a batch [T, N] without rewards, with what reference and critics say of it."""
        prompts = {name: x.to(policy.device) for name, x in left([e.prompt for e in asked], self.sampling.pad).items()}
        with policy.computing():
            made = self.generated(policy.model, prompts["token"], prompts["live"], group)
        batch = batch_of(prompts["token"], prompts["live"], made, group, self.sampling.eos)
        if policy.has_reference:
            batch = batch.replace(ref_logp=in_pieces(batch, self.at_once, policy.reference_logp, policy.vocabulary))
        if policy.critics or self.judges_again:
            logp, value, values = in_pieces(batch, self.at_once, lambda part: opinion(policy, part), policy.vocabulary)
            batch = batch.replace(value=value, values=values, next_value=after(value, batch.terminated))
            if self.judges_again:
                batch = batch.replace(logp=logp, sampler_logp=batch.logp, old=Sampled(batch.action, logp))
        return batch

    def generated(self, model: Any, token: Tensor, live: Tensor, group: int) -> Completions:
        """Completions of left-padded prompts [n, P], of which each rank draws its share: the same as one would."""
        count, (index, _) = len(token), ranks.share(len(token), token.device)
        noise = torch.rand(self.sampling.max_tokens, count, group, device=token.device)[:, index].flatten(1)
        with brought_together(model), ranks.own_stream():  # of engines that draw for themselves
            made = self.generator(model, token[index], live[index], self.sampling, group, noise)
        must_be_whole(made, self.sampling, len(index) * group)
        return Completions(*(ranks.gathered(x, count * group, 1) for x in made))


def must_be_whole(made: Completions, sampling: Sampling, lanes: int) -> None:
    """GenerationError for what an engine of one's own may not give: other shapes, or a completion with gaps.

    Advantages pass nothing on over a dead row, so that what came before a gap would not be learned for what follows.
    """
    if not isinstance(made, Completions):
        raise GenerationError(f"the generator gave a {type(made).__name__}, not Completions (sources/generation.py)")
    wanted = sampling.max_tokens, lanes
    for name, x in made._asdict().items():
        if tuple(x.shape) != wanted:
            raise GenerationError(f"the generator gave {name} {[*x.shape]}, not {[*wanted]}, tokens by completions")
    if not bool(made.mask[0].all()) or bool((made.mask[1:] & ~made.mask[:-1]).any()):
        raise GenerationError("the generator's mask must be true from a completion's first token to its last, once")


def opinion(policy: LanguagePolicy, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """logp, value and the critics' values."""
    now = policy.evaluate(batch)
    return now.logp, now.value, now.values


def batch_of(token: Tensor, live: Tensor, made: Completions, group: int, eos: Sequence[int]) -> Batch:
    """A batch [T, N] of completions of left-padded prompts [N / group, P]; `ended` [T, N]: an EOS was chosen."""
    made = Completions(*(x[: int(made.mask.any(1).sum())] for x in made))  # no longer than the longest
    token, live = (x.repeat_interleave(group, 0) for x in (token, live))
    size, length = live.sum(1), made.mask.sum(0)
    steps = torch.arange(len(made.token), device=token.device).unsqueeze(1)
    seen = torch.cat([token[:, -1:].T, made.token[:-1]])
    lanes = torch.arange(made.token.shape[1], device=token.device)
    return Batch(
        observation={"token": seen, "position": size - 1 + torch.minimum(steps, length - 1)},
        action=made.token,
        mask=made.mask,
        terminated=steps == length - 1,
        truncated=torch.zeros_like(made.mask),
        ended=made.mask & torch.isin(made.token, torch.tensor(eos, device=token.device)),
        logp=made.logp,
        old=Sampled(made.token, made.logp),
        value=torch.zeros_like(made.logp),
        next_value=torch.zeros_like(made.logp),
        group=(lanes // group).expand(made.token.shape),
        memory={"token": token[None, :, :-1], "live": live[None, :, :-1]},
    )


def scored_alike(batch: Batch, group: int) -> Tensor:
    """Which groups' completions all have the same score: bool [N / group]."""
    score = batch.reward.sum(0).view(-1, group)
    return (score == score[:, :1]).all(1)


def exchanged(batch: Batch, gone: Tensor, more: Batch, group: int, pad: int) -> Batch:
    """A batch without the groups that are `gone`, and with those of another one in their place."""
    steps = max(len(batch.mask), len(more.mask))
    width = max(part.memory["token"].shape[2] for part in (batch, more))
    kept, new = (fitted_to(part, steps, width, pad) for part in (batch, more))
    order = (~gone).long().cumsum(0) - 1, gone.long().cumsum(0) - 1 + int((~gone).sum())
    groups = torch.where(gone, order[1], order[0])
    lanes = (groups[:, None] * group + torch.arange(group, device=gone.device)).flatten()
    kept = kept.map(lambda x: x[:, (~gone).repeat_interleave(group)])
    columns = vars(kept)
    beside = {
        name: with_leaves(x, map(both, leaves_of(x), leaves_of(getattr(new, name)))) for name, x in columns.items()
    }
    together = Batch(**beside).map(lambda x: x[:, lanes])
    numbers = torch.arange(len(lanes), device=gone.device) // group
    return together.replace(group=numbers.expand(together.mask.shape))


def both(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([a, b], 1)


def fitted_to(batch: Batch, steps: int, width: int, pad: int) -> Batch:
    """The batch with dead rows behind it, and padding before its prompts."""
    more, before = steps - len(batch.mask), width - batch.memory["token"].shape[2]
    rest = Batch(**{name: x for name, x in vars(batch).items() if name != "memory"})
    rest = rest.map(lambda x: torch.cat([x, x[-1:].expand(more, *x.shape[1:])]))
    dead = torch.arange(steps, device=rest.mask.device).unsqueeze(1) >= len(batch.mask)
    quiet = {name: torch.where(dead, 0, getattr(rest, name)) for name in ("reward", "logp", "value", "next_value")}
    flags = {name: getattr(rest, name) & ~dead for name in ("mask", "terminated", "truncated", "ended")}
    memory = {
        "token": functional.pad(batch.memory["token"], (before, 0), value=pad),
        "live": functional.pad(batch.memory["live"], (before, 0)),
    }
    return rest.replace(**quiet, **flags, memory=memory)


def after(value: Tensor, terminated: Tensor) -> Tensor:
    """The value of each next state, [T, N]: that of the next row; nothing follows an end."""
    following = torch.cat([value[1:], torch.zeros_like(value[:1])])
    return torch.where(terminated, 0, following)


def written(batch: Batch) -> list[list[int]]:
    """The tokens of each lane that the policy chose."""
    return [lane[live].tolist() for lane, live in zip(batch.action.T, batch.mask.T, strict=True)]


def told(lanes: Sequence[Example], batch: Batch) -> Mapping[str, list[Any]]:
    """What rewards may ask for: the data set's columns, how long each completion is, whether it ended, its tokens."""
    names = {name: None for each in lanes for name in each.columns}
    columns = {name: [each.columns.get(name) for each in lanes] for name in names}
    length, ended = batch.mask.sum(0).tolist(), batch.ended.any(0).tolist()
    own = length, ended, [list(each.prompt) for each in lanes], written(batch)
    return {**columns, **dict(zip(ALWAYS, own, strict=True))}


class Completed:
    """What there is to say of the completions of a collection, and how many there were."""

    def __init__(self) -> None:
        self.count = torch.zeros((), dtype=torch.int64)
        self.tokens = torch.zeros((), dtype=torch.int64)
        self.last: dict[str, float | int | None] = {}

    def add(self, batch: Batch) -> None:
        self.count += batch.mask.shape[1]
        self.tokens += batch.mask.sum().cpu()
        length, score = batch.mask.sum(0).float(), batch.reward.sum(0)
        self.last = {
            "return_mean": score.mean().item(),
            "return_std": score.std().item(),
            "length_mean": length.mean().item(),
            "ended": batch.ended.any(0).float().mean().item(),
            "repetition": repetition(batch).item(),
            "entropy": masked_mean(-batch.logp, batch.mask).item(),
        }
        if "ref_logp" in vars(batch):
            self.last["kl_ref"] = lane_kl(batch).mean().item()

    def metrics(self) -> dict[str, float | int | None]:
        """episodes (completions) and tokens so far; of the last collection: return_mean, return_std (scores),
        length_mean, ended (share with an EOS), repetition, entropy (its estimate −log π, nats a token), kl_ref (nats a
        sequence)."""
        none: dict[str, float | int | None] = dict.fromkeys(("return_mean", "length_mean"))
        return {"episodes": int(self.count), "tokens": int(self.tokens), **none, **self.last}

    def state_tensors(self) -> dict[str, Tensor]:
        return {"count": self.count, "tokens": self.tokens}


def repetition(batch: Batch) -> Tensor:
    """The share of tokens that were there two tokens before as well, with the one before them: a scalar."""
    a, mask = batch.action, batch.mask
    if len(a) < 4:
        return torch.zeros((), device=a.device)
    again = (a[3:] == a[1:-2]) & (a[2:-1] == a[:-3])
    live = mask[3:]
    return (again & live).sum() / live.sum().clamp(min=1)
