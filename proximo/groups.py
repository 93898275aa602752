"""Advantages from the other completions of the same prompt: pure functions Batch -> Batch.

`group` [T, N] says which prompt a lane belongs to, the same number in all of its rows; in what order lanes lie means
nothing. A lane's score is the sum of its rewards. Lanes without a live row belong to no group.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from proximo.batch import Batch
from proximo.errors import ConfigError
from proximo.reduce import live_lanes, over_time


class Scores(NamedTuple):
    """What each lane scored, and its group: tensors [N]; 0 for lanes that are dead."""

    score: Tensor
    mean: Tensor
    std: Tensor  # unbiased
    size: Tensor  # live lanes of the group
    equal: Tensor  # bool: all of the group scored the same


def scores(batch: Batch) -> Scores:
    """Scores of all lanes and of their groups; ConfigError where a live lane is alone in its group."""
    live, score = live_lanes(batch.mask), over_time(batch.reward, batch.mask)
    index = batch.group[0].unique(return_inverse=True)[1]
    groups = torch.zeros(len(index), dtype=score.dtype, device=score.device)  # as many as there could be

    def total(x: Tensor) -> Tensor:
        return groups.index_add(0, index, torch.where(live, x, 0))[index]

    def most(x: Tensor) -> Tensor:
        return (groups - torch.inf).scatter_reduce(0, index, torch.where(live, x, -torch.inf), "amax")[index]

    size = total(torch.ones_like(score))
    if (live & (size < 2)).any():
        alone = batch.group[0][live & (size < 2)][0].item()
        raise ConfigError(
            f"prompt {alone} of the collection has one completion alone, which nothing can be compared with: sample at "
            "least two for every prompt"
        )
    mean = total(score) / size.clamp(min=1)
    std = (total((score - mean).square()) / (size - 1).clamp(min=1)).sqrt()
    return Scores(score, mean, std, size, live & (most(score) == -most(-score)))


def group_relative(batch: Batch, std: bool = True) -> Batch:
    """How much better than its group a lane scored (GRPO, Shao et al. 2024, arXiv:2402.03300, section 4.1.2).

        A = (score − mean of the group) / (std of the group + 1e-4)

    Without `std` the difference alone (Dr. GRPO, Liu et al. 2025, arXiv:2503.20783, section 3.2). Reads reward, group,
    mask; adds `advantage` [T, N], the same in all live rows of a lane. ConfigError for a group of one.
    """
    found = scores(batch)
    better = found.score - found.mean
    return _everywhere(batch, better / (found.std + 1e-4) if std else better)


def leave_one_out(batch: Batch) -> Batch:
    """A = score − mean of the OTHERS of the group (RLOO, Kool et al. 2019; Ahmadian et al. 2024, arXiv:2402.14740).

    An unbiased baseline, for it does not depend on the completion that it is taken from. Reads reward, group, mask; adds
    `advantage` [T, N], the same in all live rows of a lane. ConfigError for a group of one.
    """  # noqa: E501
    found = scores(batch)
    return _everywhere(batch, (found.score - found.mean) * found.size / (found.size - 1).clamp(min=1))


def centred(batch: Batch) -> Batch:
    """`reward` less the mean score of the lane's group, at the row where the lane ends (`terminated`).

    ConfigError for a group of one.
    """
    return batch.replace(reward=batch.reward - torch.where(batch.terminated & batch.mask, scores(batch).mean, 0))


def drop_equal(batch: Batch) -> Batch:
    """A batch in whose `mask` groups that scored alike are dead: they teach nothing (DAPO, arXiv:2503.14476, section 3.2).

    ConfigError for a group of one.
    """  # noqa: E501
    return batch.replace(mask=batch.mask & ~scores(batch).equal)


def share(batch: Batch, parts: int) -> Tensor:
    """Which of `parts` equal shares of its group a lane falls into: int64 [N], in turn, in the order of lanes."""
    _, index, sizes = batch.group[0].unique(return_inverse=True, return_counts=True)
    order = index.argsort(stable=True)  # group after group
    before = (sizes.cumsum(0) - sizes)[index[order]]
    place = torch.arange(len(index), device=index.device) - before
    return torch.empty_like(index).scatter(0, order, place) % parts


def _everywhere(batch: Batch, of_lane: Tensor) -> Batch:
    return batch.replace(advantage=torch.where(batch.mask, of_lane, 0))
