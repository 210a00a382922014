"""One scale per output channel of a weight, or per group of consecutive weights in the order of the packed file."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from triton_kernels.layout import to_rows


def per_weight(scale: Tensor, weight: Tensor) -> Tensor:
    """A weight's scale so that it can be multiplied with it: [O] as [O, 1, ...], one of its shape as it is."""
    return scale if scale.ndim == weight.ndim else scale.view(-1, *[1] * (weight.ndim - 1))


def groups_of(weight: Tensor, group: int) -> int:
    """The group size that a weight [O, ...] really has: 0, a scale per channel, where a group holds the channel."""
    return group if group < weight[0].numel() else 0


def by_group(weight: Tensor, group: int, rule: Callable[[Tensor], Tensor]) -> Tensor:
    """[O, ceil(K / group)]: rule([rows, n] -> [rows]) of each group of a weight [O, ...]; the last may be shorter."""
    rows = to_rows(weight)
    whole = rows.shape[1] // group * group
    found = [rule(rows[:, :whole].reshape(-1, group)).view(len(rows), -1)]
    if whole < rows.shape[1]:
        found.append(rule(rows[:, whole:])[:, None])
    return torch.cat(found, 1)


def spread(scale: Tensor, shape: Sequence[int], group: int) -> Tensor:
    """The scales of groups, [O, ceil(K / group)], for each weight: of the weight's shape, OIHW or [O, K]."""
    rows = scale.unsqueeze(2).expand(-1, -1, group).flatten(1)[:, : math.prod(shape[1:])]
    if len(shape) == 2:
        return rows
    out, inside, height, width = shape
    return rows.reshape(out, height, width, inside).permute(0, 3, 1, 2)
