"""Terms for pairs of sequences: mask [T, N, 2], and so `logp`, `ref_logp`, `value`; side 0 was chosen, side 1 rejected.

Each reports, besides its loss, `accuracy`, the share of pairs whose chosen side is ahead, and `margin`, by how much.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from proximo.batch import Batch
from proximo.objectives import Diagnostics, Term, per_lane
from proximo.policy import Evaluation
from proximo.reduce import over_time


def dpo(beta: float) -> Term:
    """Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290, eq. 7).

        −log σ(β h),   h = log π(y_c|x) / π_ref(y_c|x) − log π(y_r|x) / π_ref(y_r|x)

    Reports dpo_loss, accuracy, margin β h.
    """

    def formula(evaluation: Evaluation, batch: Batch) -> tuple[Tensor, Diagnostics]:
        h = beta * implicit_margin(evaluation, batch)
        return -logsigmoid(h), ahead(h)

    return per_lane("dpo_loss", formula)


def ipo(beta: float) -> Term:
    """Identity preference optimization (Azar et al. 2023, arXiv:2310.12036, eq. 17, whose τ is β): (h − 1 / 2β)².

    h as in `dpo`, a sum over tokens as in the paper. Reports ipo_loss, accuracy, margin h.
    """

    def formula(evaluation: Evaluation, batch: Batch) -> tuple[Tensor, Diagnostics]:
        h = implicit_margin(evaluation, batch)
        return (h - 1 / (2 * beta)).square(), ahead(h)

    return per_lane("ipo_loss", formula)


def bradley_terry(centering: float = 0.0) -> Term:
    """A reward model's loss (Bradley & Terry 1952; Ouyang et al. 2022, arXiv:2203.02155, eq. 1).

        −log σ(r_c − r_r − margin) + centering · (r_c + r_r)²,   r the value of a side's last live row

    `margin` [T, N], a column that need not be there, is how far a pair should be apart (Llama 2, Touvron et al. 2023,
    arXiv:2307.09288, eq. 2), the same in all rows of a lane. Centering keeps rewards about zero, which the loss alone
    leaves open (Eisenstein et al. 2023, arXiv:2312.09244). Reports reward_loss, accuracy, margin r_c − r_r,
    centre (r_c + r_r) / 2.
    """

    def formula(evaluation: Evaluation, batch: Batch) -> tuple[Tensor, Diagnostics]:
        chosen, rejected = last_live(evaluation.value, batch.mask).unbind(-1)
        wanted = batch.margin[0] if "margin" in vars(batch) else 0.0
        loss = -logsigmoid(chosen - rejected - wanted) + centering * (chosen + rejected).square()
        return loss, ahead(chosen - rejected) | {"centre": (chosen + rejected) / 2}

    return per_lane("reward_loss", formula)


def implicit_margin(evaluation: Evaluation, batch: Batch) -> Tensor:
    """h [N]: by how much more π prefers the chosen side than π_ref does, nats."""
    chosen, rejected = over_time(evaluation.logp - batch.ref_logp, batch.mask).unbind(-1)
    return chosen - rejected


def ahead(margin: Tensor) -> Diagnostics:
    return {"accuracy": (margin > 0).to(margin.dtype), "margin": margin}


def last_live(x: Tensor, mask: Tensor) -> Tensor:
    """`x` [T, N, ...], shaped like the mask, in each lane's last live row: [N, ...]; in row 0 where none is live."""
    rows = torch.arange(len(mask), device=mask.device).view(-1, *[1] * (mask.dim() - 1))
    last = torch.where(mask, rows, 0).amax(0, keepdim=True)
    return x.gather(0, last).squeeze(0)
