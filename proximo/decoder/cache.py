"""Keys and values of completions while they are written, of which several share a prompt."""

from __future__ import annotations

import torch
from torch import Tensor

from proximo.decoder.transformer import LOWEST, ceil, matmul, weighted

Layers = list[tuple[Tensor, Tensor]]  # keys and values of each layer


class Cache:
    """Keys and values of R rows, each the continuation of one of n prompts, written in place.

    A prompt's are there once, and the queries of all rows that continue it are multiplied with them at once
    (Juravsky et al. 2024, arXiv:2402.05099). What is summed, and in which order, is what `transformer.attend` sums over
    the whole sequence with `split` at the prompt's end.
    """

    def __init__(self, prompts: Layers, live: Tensor, owner: Tensor, steps: int) -> None:
        """`prompts` [n, G, ceil(P), D] each; `live` [n, P]; `owner` [R], the prompt of each row; room for `steps`."""
        keys = prompts[0][0]
        self.width, self.groups = live.shape[1], keys.shape[1]
        self.prompts = [(k.flatten(0, 1), v[:, :, : self.width].flatten(0, 1)) for k, v in prompts]
        self.hidden = torch.zeros(live.shape, device=live.device).masked_fill_(~live, LOWEST)[:, None, None]
        size, room = keys.shape[3], ceil(steps)
        self.keys = keys.new_zeros(len(prompts), len(owner), self.groups, size, room)  # by columns: products are faster
        self.values = keys.new_zeros(len(prompts), len(owner), self.groups, room, size)
        self.ahead = torch.full((room,), LOWEST, device=live.device)
        self.used = -1
        self.seat(owner)

    def seat(self, owner: Tensor) -> None:
        """Where each row sits beside the others of its prompt: `seats` [n, M] of rows; `place` [R] among them."""
        counts = torch.bincount(owner, minlength=len(self.hidden))
        order = owner.argsort(stable=True)
        rank = torch.arange(len(owner), device=owner.device) - (counts.cumsum(0) - counts)[owner[order]]
        self.owner, most = owner, int(counts.max())
        self.seats = owner.new_zeros(len(counts), most)
        self.seats[owner[order], rank] = order
        self.place = torch.empty_like(owner)
        self.place[order] = owner[order] * most + rank

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone."""
        self.keys, self.values = self.keys.index_select(1, rows), self.values.index_select(1, rows)
        self.seat(self.owner[rows])

    def advance(self) -> None:
        """Make room for the next token of every row, and show it."""
        self.used += 1
        self.ahead[self.used] = 0.0

    def seated(self, x: Tensor) -> Tensor:
        """[R·G, r, C] -> [n·G, M·r, C]: rows of the same prompt side by side."""
        rows = x.unflatten(0, (-1, self.groups))[self.seats]
        return rows.transpose(1, 2).flatten(2, 3).flatten(0, 1)

    def unseated(self, x: Tensor) -> Tensor:
        """Back from `seated`."""
        seats = x.view(len(self.hidden), self.groups, self.seats.shape[1], -1, x.shape[-1]).transpose(1, 2)
        return seats.flatten(0, 1)[self.place].flatten(0, 1)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of one new token in every row: q [R, H, 1, D], k and v [R, G, 1, D] -> [R, 1, H·D]."""
        end = ceil(self.used + 1)
        self.keys[layer, :, :, :, self.used], self.values[layer, :, :, self.used] = k[:, :, 0], v[:, :, 0]
        keys, values = self.keys[layer, ..., :end].flatten(0, 1), self.values[layer, :, :, :end].flatten(0, 1)
        shared_keys, shared_values = self.prompts[layer]
        q = q.reshape(len(keys), -1, q.shape[3])
        shared = matmul(self.seated(q), shared_keys.transpose(1, 2))[..., : self.width]
        shared = shared.unflatten(0, (-1, self.groups)) + self.hidden
        own = matmul(q, keys) + self.ahead[:end]
        scores = torch.cat((self.unseated(shared.flatten(0, 1)), own), -1)
        share = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(v.dtype)
        y = self.unseated(weighted(self.seated(share[..., : self.width]), shared_values))
        return weighted(share[..., self.width :], values, y).view(len(v), 1, -1)
