"""What a model's last layer makes of rows of tokens, by the forward pass that our decoder samples with."""

from __future__ import annotations

import torch
from torch import Tensor

from proximo.decoder.transformer import Decoder, continued, hidden
from proximo.models.language.rows import Rows


def last_layer(decoder: Decoder, rows: Rows, steps: int, prompt: int) -> Tensor:
    """[M, steps, D] of the last `steps` tokens of each row, whose first `prompt` tokens are its prompt.

    A prompt that several rows begin with is read once for all of them, as it is where completions are drawn.
    """
    before = rows.token.shape[1] - steps
    if not before or (decoder.saves_memory and torch.is_grad_enabled()):
        return hidden(decoder, rows.token, rows.position, rows.attention(), split=prompt)[:, -steps:]
    marked = torch.where(rows.live, rows.token, -1)[:, :prompt]
    prompts, owner = marked.unique(dim=0, return_inverse=True)
    if len(prompts) == len(marked):
        return hidden(decoder, rows.token, rows.position, rows.attention(), split=prompt)[:, -steps:]
    rest = rows.token[:, prompt:], rows.position[:, prompt:]
    first, own = continued(decoder, prompts.clamp(min=0), prompts >= 0, owner, *rest)
    return torch.cat((first[:, before:].index_select(0, owner), own), 1)
