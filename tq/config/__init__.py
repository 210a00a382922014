"""The settings of every command: frozen dataclasses, the one source of flags, JSON files and the dashboard's form.

A field's docstring (the string below it) is its help text everywhere. Bad values raise ValueError with one
sentence. Standard library only: the dashboard imports them and must not load torch.
"""

from __future__ import annotations

from tq.config.bench import PEERS as PEERS
from tq.config.bench import BenchConfig as BenchConfig
from tq.config.bench import KernelBenchConfig as KernelBenchConfig
from tq.config.checks import DATASETS as DATASETS
from tq.config.checks import MODELS as MODELS
from tq.config.quantize import QuantizeConfig as QuantizeConfig
from tq.config.train import TrainConfig as TrainConfig
from tq.config_io import choices as choices
from tq.config_io import from_dict as from_dict
from tq.config_io import from_json as from_json
from tq.config_io import to_argv as to_argv
from tq.config_io import to_dict as to_dict
from tq.training_rules import QUANTIZED_UPDATE as QUANTIZED_UPDATE
from tq.training_rules import parse_override as parse_override
