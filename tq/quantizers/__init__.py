"""Fake quantizers: what a layer's weights and inputs become, as integer codes and a scale.

Every quantizer returns `(codes, scale)` with value = codes * scale. The layer convolves the codes and multiplies by
the scale afterwards, in training as in inference: the codes of 8 bits and less are exact in bfloat16, so mixed
precision rounds nothing that the packed file keeps. Gradients pass the rounding straight through (STE); each class
states its rule. Codes are integer-valued floats, centred on zero (a zero point is already subtracted).

A weight [O, ...] has one scale per output channel ([O]), one for all ([O] too, all equal), or one for each group of
consecutive weights of a channel, in the order in which they are packed (kh, kw, in). Of these every weight is given its
own (a scale of the weight's shape), as they cannot leave the sum: the layer convolves codes * scale.

| class | of | scale | gradient | source |
| --- | --- | --- | --- | --- |
| ScaledSign | weights, 1 bit | mean of abs(w) | identity | XNOR-Net, arXiv 1603.05279, eq. 6 |
| LearnedWeight | weights, 1 to 8 bits | learned | LSQ | arXiv 1902.08153, eqs. 1 to 5 |
| PowerOfTwo | weights, 2 to 8 bits | smallest power, fixed | none: frozen in steps | INQ, arXiv 1702.03044 |
| Clip | inputs | 1, fixed | 1 strictly inside the range | DoReFa-like, Quantized_ResNet |
| PACT | inputs | alpha / n, learned | 1 inside; d/d alpha = 1 above | arXiv 1805.06085, eqs. 1 to 3 |
| LearnedStep | inputs | learned, with a calibrated zero point | LSQ | arXiv 1902.08153, eqs. 1 to 5 |
| LearnedOffset | inputs | learned, as is the zero point of signed ones | LSQ+ | arXiv 2004.09576, eqs. 4 to 6 |
"""

from __future__ import annotations

from tq.quantizers.activations import ACT_QUANTIZERS as ACT_QUANTIZERS
from tq.quantizers.activations import PACT as PACT
from tq.quantizers.activations import ActQuantizer as ActQuantizer
from tq.quantizers.activations import Clip as Clip
from tq.quantizers.activations import LearnedOffset as LearnedOffset
from tq.quantizers.activations import LearnedStep as LearnedStep
from tq.quantizers.activations import act_range as act_range
from tq.quantizers.groups import by_group as by_group
from tq.quantizers.groups import groups_of as groups_of
from tq.quantizers.groups import per_weight as per_weight
from tq.quantizers.groups import spread as spread
from tq.quantizers.power_of_two import PowerOfTwo as PowerOfTwo
from tq.quantizers.power_of_two import magnitudes as magnitudes
from tq.quantizers.power_of_two import nearest_power as nearest_power
from tq.quantizers.power_of_two import top_exponent as top_exponent
from tq.quantizers.weights import LearnedWeight as LearnedWeight
from tq.quantizers.weights import ScaledSign as ScaledSign

WeightQuantizer = ScaledSign | LearnedWeight | PowerOfTwo
