"""What critics say belongs to the state before a token, as rewards belong to the token itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from proximo.advantages import gae
from proximo.batch import Batch
from proximo.models.language.build import CriticKind, language_policy
from proximo.models.language.hub import trunk_of
from proximo.sources.text.padding import completions

PROMPTS = [[5], [6, 7, 8], [9, 10]]
ANSWERS = [[11, 12, 13, 2], [14, 2], [15, 16, 17]]


@pytest.mark.parametrize("kind", ["shared", "separate", "mini"])
def test_a_value_is_that_of_the_text_before_the_token(kind: CriticKind, model: Path) -> None:
    """Not of one token less, or more (verl #1440, #1758): from the prompt and t tokens alone."""
    policy = language_policy(model, kind, reference=False)
    critic: Any = policy.critic
    torch.manual_seed(0)
    for head in critic.heads:
        torch.nn.init.normal_(head.weight)
    batch = completions(PROMPTS, ANSWERS, 0)
    with torch.no_grad():
        values = policy.evaluate(batch).values
        for lane, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
            for t in range(len(answer)):
                before = torch.tensor([[*prompt, *answer[:t]]])
                trunks = list(critic.trunks) or [trunk_of(policy.model)]
                alone = [trunk(before).last_hidden_state[0, -1] for trunk in trunks]
                wanted = torch.stack([head(x)[0] for head, x in zip(critic.heads, alone, strict=True)])
                torch.testing.assert_close(values[t, lane], wanted, rtol=0, atol=1e-5)


def test_an_advantage_needs_no_value_of_what_the_policy_did_not_choose() -> None:
    """A completion alone, or with rows behind it whose numbers mean nothing: the same advantages (OpenRLHF #1240)."""
    reward, value = torch.tensor([0.0, 0.0, 1.0, torch.nan]), torch.tensor([0.5, 0.2, 0.7, torch.nan])
    mask = torch.tensor([True, True, True, False])
    terminated = torch.tensor([False, False, True, False])

    def advantages(rows: int) -> torch.Tensor:
        columns: dict[str, Any] = dict(reward=reward, value=value, mask=mask, terminated=terminated)
        batch = Batch(**{name: x[:rows, None] for name, x in columns.items()})
        after = torch.cat([batch.value[1:], torch.zeros(1, 1)]).where(~batch.terminated, 0)
        batch = batch.replace(next_value=after, truncated=torch.zeros_like(batch.mask))
        return gae(batch, 1.0, 0.9).advantage[:3, 0]

    first = 0.9 * (0.9 * (1 - 0.7) + 0.7 - 0.2) + 0.2 - 0.5
    assert advantages(3).tolist() == pytest.approx([first, 0.9 * (1 - 0.7) + 0.7 - 0.2, 1 - 0.7])
    assert advantages(4).tolist() == advantages(3).tolist()
