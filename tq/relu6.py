"""ReLU6 in front of quantized layers becomes ReLU, which a convolution can take in.

    codes of min(max(y, 0), 6) = clamp(round(y+ / s) + z, qmin, qmax)    if round(6 / s) + z >= qmax,   y+ = max(y, 0)

because then all that 6 would cut off lies beyond the last code: quantization clips it already. A calibrated range of
values that end at 6 is never wider than 6, so this holds after calibration, and is tested here for every reader. Max
pooling is monotone and may lie between. A ReLU6 that something else reads stays what it is.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import fx, nn

from tq.lower import kind
from tq.packed import PackedLayer


def without_relu6(traced: fx.GraphModule) -> None:
    """Replace every ReLU6 whose readers cannot tell it from a ReLU, in place."""
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        top = _top(node, modules)
        if top is None or not _only_clipped(node, modules, top):
            continue
        with traced.graph.inserting_after(node):
            relu = traced.graph.call_function(torch.relu, (node.all_input_nodes[0],))
        node.replace_all_uses_with(relu)
        traced.graph.erase_node(node)
    traced.recompile()


def _top(node: fx.Node, modules: Mapping[str, nn.Module]) -> float | None:
    """Where a ReLU with an upper end, read by itself, cuts; None for any other node."""
    if len(node.all_input_nodes) != 1:
        return None
    if node.op == "call_module":
        module = modules[str(node.target)]
        # nn.ReLU6 is a Hardtanh
        if not isinstance(module, nn.Hardtanh) or module.min_val != 0:
            return None
        top, in_place = module.max_val, module.inplace
    elif node.op == "call_function" and node.target is F.relu6:
        top, in_place = 6.0, bool(node.kwargs.get("inplace", node.args[1:] == (True,)))
    else:
        return None
    # in place, another reader of the input would see the result
    return None if in_place and len(node.all_input_nodes[0].users) > 1 else float(top)


def _only_clipped(node: fx.Node, modules: Mapping[str, nn.Module], top: float) -> bool:
    """Whether all readers of a value quantize it to codes that end at `top` or below."""
    return bool(node.users) and all(
        _clips(modules[str(user.target)], top)
        if kind(user, modules) in ("conv", "linear")
        else kind(user, modules) in ("alias", "flatten", "max_pool") and _only_clipped(user, modules, top)
        for user in node.users
    )


def _clips(layer: nn.Module, top: float) -> bool:
    assert isinstance(layer, PackedLayer)
    if layer.format.act_bits == 16:
        return False
    code = torch.tensor(top, device=layer.inverse.device).mul(layer.inverse).round() + layer.format.zero_point
    return layer.binary or bool(code >= layer.qmax)
