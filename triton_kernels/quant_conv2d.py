"""A whole quantized convolution in one Triton kernel: `reference.quant_conv2d` for CUDA tensors.

This file chooses tiles and plans the kernels of a call:

    conv_input          what must run before: quantizing floats, staging an image of few channels
    conv_kernel         the product and the layer's end, on weights in the layout of `conv_form`
    depthwise_conv2d    the same for one input channel a group
    epilogue            the sum of a product whose K was split among programs
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import product
from typing import Any

import torch
import triton
from torch import Tensor

from triton_kernels import depthwise_conv2d
from triton_kernels.conv_form import ConvForm, prepare
from triton_kernels.conv_input import enter, wide
from triton_kernels.conv_kernel import conv
from triton_kernels.epilogue import plan_sum, tail_of
from triton_kernels.launch import Case, Launch, interpreted
from triton_kernels.layout import row_bytes
from triton_kernels.reference import conv_sizes
from triton_kernels.spec import NO_INPUT, NO_OUTPUT, Input, Output
from triton_kernels.tuning import Config, architecture, choose, fits


def candidates(form: ConvForm, pixels: int, dtype: torch.dtype) -> list[Config]:
    """Tiles worth trying for a convolution of x of `dtype` to `pixels` outputs a channel, the default first."""
    if not form.block:
        return depthwise_conv2d.candidates(form.shape[0])
    k, exact = form.weight.shape[1] * 8 // form.bits, not dtype.is_floating_point
    # bytes lie the same way whatever S is, so 8-bit weights leave it open; elsewhere it was fixed by `prepare`
    blocks = (128, 64) if exact and form.bits == 8 and form.view[1] % 128 == 0 else (form.block,)
    known = architecture(form.weight.device)
    tiles = _tiles(form.view[0] // form.groups, form.groups, k, blocks, pixels, dtype)
    return [c for c in tiles if fits(c, _stage_bytes(c, form.bits, dtype), known)] or tiles[-1:]


@lru_cache(1024)
def _tiles(o: int, groups: int, k: int, blocks: tuple[int, ...], pixels: int, dtype: torch.dtype) -> list[Config]:
    """Fewer tiles than the 132 multiprocessors of an H100 split K, so that small batches keep it busy."""
    exact = not dtype.is_floating_point
    widest = min(128 // dtype.itemsize, max(16, triton.next_power_of_2(o)))
    rows = (128, 64) if exact and pixels > 64 else (64,)
    tiles = list(dict.fromkeys((m, n) for n in (widest, max(16, widest // 2)) for m in rows))

    def programs(tile: tuple[int, int]) -> int:
        return triton.cdiv(pixels, tile[0]) * triton.cdiv(o, tile[1]) * groups

    tiles.sort(key=lambda tile: -min(programs(tile), 132))
    found = []
    for block, stages, tile in product(blocks, (3, 4) if exact else (2, 3), tiles):
        split = 1
        while exact and split < 16 and programs(tile) * split * 2 <= 132 and k >= split * 1024:
            split *= 2
        sizes = (("BM", tile[0]), ("BN", tile[1]), ("S", block), ("SPLIT", split))
        found.append(Config(sizes, num_warps=8 if tile == (128, 128) else 4, num_stages=stages))
    return found


def _stage_bytes(config: Config, bits: int, dtype: torch.dtype) -> int:
    tiles = config.constants
    return tiles["S"] * (tiles["BM"] * dtype.itemsize * 8 // bits + tiles["BN"])


def plan(
    x: Tensor,
    form: ConvForm,
    scale: Tensor,
    bias: Tensor | None,
    given: Input,
    out: Output,
    y: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    *,
    config: Config | None = None,
) -> list[Launch]:
    """The kernels of one convolution of x into y, channels last like the residual.

    Runs nothing, except that an image of codes that must be staged is copied at once.
    """
    launches, x, zero, padding = enter(x, form, given, padding, dilation)
    pixels = y.shape[0] * y.shape[2] * y.shape[3]
    config = config or candidates(form, pixels, x.dtype)[0]
    tiles = config.constants
    args: dict[str, Any] = {
        "tail": tail_of(out, y),
        "x": x,
        "weight": form.weight,
        "wsum": form.wsum,
        "scale": scale,
        "bias": bias,
        "pixels": pixels,
    }
    args |= {"height": x.shape[2], "width": x.shape[3], "out_height": y.shape[2], "out_width": y.shape[3]}
    o, i, kh, kw = form.view
    constants: dict[str, Any] = {
        "RELU": out.relu,
        "C": x.shape[1],
        "OUTPUTS": o,
        "KH": kh,
        "KW": kw,
        "WIDE": wide(x, y),
        **tiles,
    }
    for name, pair in (("STRIDE", stride), ("PAD", padding), ("DILATION", dilation)):
        constants |= {f"{name}_H": pair[0], f"{name}_W": pair[1]}
    groups = form.groups if form.block else 1
    programs = triton.cdiv(pixels, tiles["BM"]) * triton.cdiv(o // groups, tiles["BN"]) * groups
    if not form.block:
        args["zero"] = zero
        return [
            *launches,
            Launch(depthwise_conv2d.kernel, (programs,), args, constants, config.num_warps, config.num_stages),
        ]
    args |= {"blank": None, "partial": None, "start": 0, "zero": zero}
    constants |= {"INPUTS": i, "GROUPS": form.groups, "BITS": form.bits, "FLAT": form.flat, "SHIFT": form.shift}
    assert tiles["S"] == form.block or (form.bits == 8 and i % tiles["S"] == 0), "S was fixed by prepare"
    constants |= {"STEPS": form.weight.shape[1] // tiles["S"], "PADDED": "mask" if any(padding) else "no"}
    constants["ASM"] = not interpreted() and torch.version.hip is None
    if any(padding) and zero:
        args["blank"], constants["PADDED"] = form.blanks[zero % 256].view(x.dtype), "blank"
    if form.pitch and dilation[1] > 1:
        # the taps of a row do not lie together
        constants |= {"INPUTS": form.pitch, "KW": i // form.pitch, "FLAT": True}
    if x.dtype == torch.uint8:
        args["zero"] = zero - 128
        # a byte beyond the end is loaded as 0 and multiplied as -128, in one bit by a weight of +1 * 2^6
        args["start"] = 128 * form.spare << 6 if form.bits == 1 else 0
    split = tiles["SPLIT"]
    main = Launch(conv, (programs, split), args, constants, config.num_warps, config.num_stages)
    if split == 1 or not pixels:
        return [*launches, main]
    partial = torch.empty((split, pixels, o), dtype=torch.int32, device=x.device)
    args["partial"] = partial
    rows = {**args, "row_scale": None, "m": pixels, "n": o, "out_stride": o, "residual_stride": o}
    return [*launches, main, plan_sum(partial, rows, constants, form.shift)]


def quant_conv2d(
    x: Tensor,
    form: ConvForm,
    scale: Tensor,
    bias: Tensor | None = None,
    given: Input = NO_INPUT,
    out: Output = NO_OUTPUT,
    *,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    config: Config | None = None,
) -> Tensor:
    """x [N, C, H, W] to [N, O, H', W'], channels last: `reference.quant_conv2d` with a prepared weight.

    x: codes (uint8 or int8), or floating: quantized first by a kernel of its own, or kept ("float", weight-only).
    Images of 2 to 15 channels in one group are staged first (`conv_input`).
    """
    kind = given.kind(x.dtype)
    if kind in ("dynamic", "packed"):
        raise ValueError(
            f"expected codes or floats with one scale, got {kind} inputs: quantize them before a convolution"
        )
    channels = form.shape[1] * form.groups
    if x.dim() != 4 or x.shape[1] != channels:
        raise ValueError(f"expected x [N, {channels}, H, W], got {list(x.shape)}: this weight was made for that")
    y = torch.empty(
        (x.shape[0], form.shape[0], *conv_sizes(x.shape[2:], form.shape[2:], stride, padding, dilation)),
        dtype=out.out_dtype,
        device=x.device,
        memory_format=torch.channels_last,
    )
    if out.residual is not None:
        out = replace(out, residual=out.residual.contiguous(memory_format=torch.channels_last))
    scale, bias = scale.contiguous(), bias if bias is None else bias.contiguous()

    def planned(config: Config) -> list[Launch]:
        steps = stride, padding, dilation
        return plan(x, form, scale, bias, given, out, y, *steps, config=config)

    if config is None:
        pixels = y.shape[0] * y.shape[2] * y.shape[3]
        options = candidates(form, pixels, torch.int8 if kind == "static" else x.dtype)
        sizes = (*form.view, form.groups, *stride, *dilation, pixels.bit_length())
        key: tuple[int | str, ...] = (kind, str(x.dtype).removeprefix("torch."), form.bits, *sizes)
        config = choose("quant_conv2d", key, options[1:], options[0], planned, device=x.device)
    for launch in planned(config):
        launch.run()
    return y


_LAYERS = (
    # name, in, out, kernel, stride, size, groups
    ("resnet20-stem", 3, 16, 3, 1, 32, 1),
    ("resnet20-16", 16, 16, 3, 1, 32, 1),
    ("resnet20-16-32s2", 16, 32, 3, 2, 32, 1),
    ("resnet20-64", 64, 64, 3, 1, 8, 1),
    ("resnet50-stem", 3, 64, 7, 2, 224, 1),
    ("resnet50-64", 64, 64, 3, 1, 56, 1),
    ("resnet50-256-64", 256, 64, 1, 1, 56, 1),
    ("resnet50-512", 512, 512, 3, 1, 7, 1),
    ("resnet50-256-1024", 256, 1024, 1, 1, 14, 1),
    ("mobilenetv2-dw96", 96, 96, 3, 1, 56, 96),
)


def cases() -> list[Case]:
    """Convolutions of ResNet-20, ResNet-50 and MobileNetV2, and what their machine code must have."""
    found = [_case(layer, 8, torch.uint8) for layer in _LAYERS]
    for layer in (_LAYERS[1], _LAYERS[3], _LAYERS[5], _LAYERS[7]):
        found += [_case(layer, bits, torch.uint8) for bits in (4, 2, 1)]
        found += [_case(layer, bits, torch.int8) for bits in (8, 4)]
    found += [_case(_LAYERS[7], bits, torch.uint8, batch=1) for bits in (8, 1)]
    return [*found, _case(_LAYERS[4], 8, torch.float32), _case(_LAYERS[7], 4, torch.float16)]


def _case(layer: tuple[str, int, int, int, int, int, int], bits: int, dtype: torch.dtype, *, batch: int = 64) -> Case:
    """dtype uint8: zero point 0; int8: another, with a residual; float32: quantized first; float16: weight-only."""
    name, i, o, kernel, stride, size, groups = layer
    shape, padding = (o, i // groups, kernel, kernel), (kernel // 2,) * 2
    meta = torch.device("meta")
    form = prepare(
        torch.empty(o, row_bytes(i // groups * kernel**2, bits), dtype=torch.uint8, device=meta), bits, shape, groups
    )
    x = torch.empty(batch, i, size, size, dtype=dtype, device=meta, memory_format=torch.channels_last)
    strides = (stride, stride)
    out_size = conv_sizes((size, size), (kernel, kernel), strides, padding)
    y_dtype = torch.float16 if dtype == torch.float16 else dtype if dtype == torch.int8 else torch.uint8
    y = torch.empty(batch, o, *out_size, dtype=y_dtype, device=meta, memory_format=torch.channels_last)
    vector, number = torch.empty(o, device=meta), torch.empty((), device=meta)
    given = Input(inv_scale=number if dtype == torch.float32 else None, zero_point=-128 if dtype == torch.int8 else 0)
    out = Output(relu=True, inv_scale=None if dtype == torch.float16 else number, dtype=y_dtype)
    if dtype == torch.int8:
        out = replace(out, residual=y, residual_scale=number, zero_point=-128, qmin=-128, qmax=127)
    launches = plan(x, form, vector, vector, given, out, y, strides, padding, (1, 1))
    instructions = ("HMMA", "HGMMA") if dtype == torch.float16 else (r"IMMA.*S8\.S8", r"IGMMA.*S8\.S8")
    needs: dict[int, tuple[str, ...]] = {} if groups > 1 else {80: instructions[:1], 90: instructions[1:]}
    return Case(
        f"{name}-w{bits}-{str(dtype).removeprefix('torch.')}-n{batch}",
        launches,
        needs,
        max_registers=255 if groups == 1 else 128,
    )
