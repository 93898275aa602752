"""Lists of token ids as batches: rows are tokens, lanes are sequences. Nothing here looks at what a token is.

The row t of a lane has the token that the policy saw last (`observation`, with its position), and the one it chose then
(`action`). Row 0 saw the last token of the prompt; the tokens before are in `memory`, left-padded. Masks come from
lengths, so that a token which also pads, or ends a text, is learned where it belongs to one.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from proximo.batch import Batch
from proximo.errors import ConfigError

Ids = Sequence[int]


def completions(prompts: Sequence[Ids], answers: Sequence[Ids], pad: int) -> Batch:
    """N sequences as a batch [T, N], T the longest answer's tokens; `memory` [1, N, P], P + 1 the longest prompt's.

    `mask` holds where a token of an answer was chosen, `terminated` at the last of them. In dead rows `action` and
    token are `pad`, and the position is that of the last live row, so that no model is asked for one it has not.

    Raises ConfigError for an empty prompt (a policy chooses after a token) or answer.
    """
    for name, each in (("prompt", prompts), ("completion", answers)):
        if not all(map(len, each)):
            raise ConfigError(f"the {name} of sequence {[*map(len, each)].index(0)} has no tokens")
    sizes = torch.tensor([*map(len, answers)])
    steps = torch.arange(int(sizes.max())).unsqueeze(1)
    mask = steps < sizes
    seen = _right([[prompt[-1], *answer[:-1]] for prompt, answer in zip(prompts, answers, strict=True)], pad)
    before = torch.tensor([len(prompt) - 1 for prompt in prompts])
    return Batch(
        observation={"token": seen, "position": before + torch.minimum(steps, sizes - 1)},
        action=_right(answers, pad),
        mask=mask,
        terminated=steps == sizes - 1,
        truncated=torch.zeros_like(mask),
        memory={name: x.unsqueeze(0) for name, x in left([prompt[:-1] for prompt in prompts], pad).items()},
    )


def pairs(prompts: Sequence[Ids], chosen: Sequence[Ids], rejected: Sequence[Ids], pad: int) -> Batch:
    """N pairs as a batch [T, N, 2], chosen before rejected, so that no minibatch parts them; `memory` [1, N, P, 2].

    Each side is as in `completions`.
    """
    both = [side for pair in zip(chosen, rejected, strict=True) for side in pair]
    flat = completions([prompt for prompt in prompts for _ in range(2)], both, pad)
    memory = {name: x.unflatten(1, (-1, 2)).transpose(-1, -2) for name, x in flat.memory.items()}
    return flat.map(lambda x: x.unflatten(1, (-1, 2))).replace(memory=memory)


def packed(lanes: Sequence[Sequence[tuple[Ids, Ids]]], length: int, pad: int) -> Batch:
    """Lanes of several texts, (prompt, answer) one behind the other, as a batch [length, N]; P = 0.

    A text of n tokens takes n - 1 rows: its last token is chosen and never seen. `position` begins with 0 where a text
    does, and a policy must see nothing beyond it; rows that fill a lane have the position 0, each alone. `mask` holds
    where a token of an answer was chosen: exactly what `completions` learns.

    Raises ConfigError for a lane that holds more than `length` rows, and for an empty prompt or answer.
    """
    seen, chosen, position, mask, last = ([list[int]() for _ in lanes] for _ in range(5))
    for n, lane in enumerate(lanes):
        for prompt, answer in lane:
            if not len(prompt) or not len(answer):
                raise ConfigError(
                    f"the {'completion' if len(prompt) else 'prompt'} of a text in lane {n} has no tokens"
                )
            text = [*prompt, *answer]
            seen[n] += text[:-1]
            chosen[n] += text[1:]
            position[n] += range(len(text) - 1)
            mask[n] += [0] * (len(prompt) - 1) + [1] * len(answer)
            last[n] += [0] * (len(text) - 2) + [1]
        if len(seen[n]) > length:
            raise ConfigError(f"lane {n} holds {len(seen[n])} rows, more than its {length}")
    live = _right(mask, 0, length).bool()
    empty = torch.zeros(1, len(lanes), 0, dtype=torch.int64)
    return Batch(
        observation={"token": _right(seen, pad, length), "position": _right(position, 0, length)},
        action=_right(chosen, pad, length),
        mask=live,
        terminated=_right(last, 0, length).bool(),
        truncated=torch.zeros_like(live),
        memory={"token": empty, "live": empty.bool()},
    )


def fitted(sizes: Sequence[int], length: int) -> list[list[int]]:
    """Which texts share a lane of `length` rows: indices of `sizes`, the rows each takes. The same for the same sizes.

    Best fit, the longest first (Johnson 1974; for texts Ding et al. 2024, arXiv:2404.10830): each goes where the least
    room is left that it fits in, the first such lane; else a lane is opened. Nothing is cut.

    Raises ConfigError for a text longer than a lane.
    """
    lanes: list[list[int]] = []
    room: list[tuple[int, int]] = []  # rows left and lane, in order
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        if sizes[i] > length:
            raise ConfigError(f"a text takes {sizes[i]} rows, but lanes have {length}: limit it, or make lanes longer")
        place = bisect_left(room, (sizes[i], -1))
        if place < len(room):
            left_over, lane = room.pop(place)
        else:
            left_over, lane = length, len(lanes)
            lanes.append([])
        lanes[lane].append(i)
        if left_over > sizes[i]:
            insort(room, (left_over - sizes[i], lane))
    return lanes


def left(prompts: Sequence[Ids], pad: int) -> dict[str, Tensor]:
    """Prompts that end together: {"token": [N, P], "live": bool [N, P]}, P the longest's tokens; `pad` before."""
    sizes = torch.tensor([*map(len, prompts)])
    longest = int(sizes.max())
    live = torch.arange(longest) >= longest - sizes.unsqueeze(1)
    return {"token": _filled(prompts, live, pad), "live": live}


def _right(lanes: Sequence[Ids], pad: int, length: int = 0) -> Tensor:
    """[T, N], T the longest lane's tokens or `length`; `pad` behind others."""
    sizes = torch.tensor([*map(len, lanes)])
    live = torch.arange(max(length, int(sizes.max()))) < sizes.unsqueeze(1)
    return _filled(lanes, live, pad).T.contiguous()


def _filled(lanes: Sequence[Ids], live: Tensor, pad: int) -> Tensor:
    """Token ids in the order of the live places of [N, T]."""
    tokens = torch.full(live.shape, pad)
    tokens[live] = torch.tensor([*chain.from_iterable(lanes)], dtype=torch.int64)
    return tokens
