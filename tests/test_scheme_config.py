"""tq.scheme and tq.config: names, values and types, and the one sentence that a bad one gets."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tq.config import BenchConfig, QuantizeConfig, TrainConfig, choices, from_dict, from_json, parse_override, to_dict
from tq.scheme import ACT_BITS, WEIGHT_BITS, Scheme

NAN, INF = float("nan"), float("inf")


def one_sentence(error: pytest.ExceptionInfo[ValueError]) -> str:
    text = str(error.value)
    assert text and "\n" not in text and not text.endswith(".") and len(text) < 400
    return text


@pytest.mark.parametrize("weight_bits", WEIGHT_BITS)
@pytest.mark.parametrize("act_bits", ACT_BITS)
def test_scheme_names(weight_bits: int, act_bits: int) -> None:
    scheme = Scheme(weight_bits, act_bits)
    assert Scheme.parse(f"w{weight_bits}a{act_bits}") == scheme == Scheme.parse(str(scheme))
    assert scheme.is_float == (str(scheme) == "float") == (weight_bits == act_bits == 16)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("w3a2", "weight bits"), ("w1a32", "activation bits"), ("flaot", "'float'"), ("w1a2 ", "'w1a2'"), ("", "")],
)
def test_scheme_errors(name: str, hint: str) -> None:
    with pytest.raises(ValueError) as error:
        Scheme.parse(name)
    assert hint in one_sentence(error)


BAD = [
    (TrainConfig, "model", "resnet-20", "'resnet20'"),
    (TrainConfig, "dataset", "digit", "'digits'"),
    (TrainConfig, "image_size", 0, "at least 1"),
    (TrainConfig, "scheme", "w1b2", "'w1a2'"),
    (TrainConfig, "stage_act_bits", (4, 3), "got 3"),
    (TrainConfig, "first_last", "4", "16, 8, same"),
    (TrainConfig, "override", ("conv1",), "PATTERN=SCHEME"),
    (TrainConfig, "override", ("=w1a2",), "PATTERN=SCHEME"),
    (TrainConfig, "override", ("conv1=w1",), "unknown scheme 'w1'"),
    (TrainConfig, "act_quantizer", "lqs", "'lsq'"),
    (TrainConfig, "weight_quantizer", "sign", "scaled-sign"),
    (TrainConfig, "granularity", "chanel", "'channel'"),
    (TrainConfig, "optimizer", "adan", "'adam'"),
    *[(TrainConfig, "qp", value, "qp must be from 0 to 32") for value in (-1, 33)],
    (TrainConfig, "qp", 3, "of optimizer qsgd, qtadam, qtadamw, but the optimizer is sgd"),
    (TrainConfig, "resolution", "scheduled", "but the optimizer is sgd; drop it"),
    (TrainConfig, "resolution", "log", "'log-t'"),
    (TrainConfig, "compensation_kappa", NAN, "at least 0"),
    *[(TrainConfig, "compensation_tau0", value, "from 0 to 1") for value in (-0.1, 1.1, NAN)],
    *[(TrainConfig, "progressive", (value,), "SCHEME:EPOCHS") for value in ("w4a4", "w4a4:0", "w4a4:x")],
    *[(TrainConfig, "progressive", (value,), "w<bits>a<bits>") for value in ("float:1", "inq5:1")],
    (TrainConfig, "progressive", ("w3a3:1",), "weight bits"),
    *[(TrainConfig, "ema", value, "ema must be") for value in (-0.1, 1.0, NAN)],
    *[(TrainConfig, "distill", value, "distill must be") for value in (-0.1, 1.1, NAN)],
    (TrainConfig, "distill_temperature", 0.0, "positive"),
    (TrainConfig, "norm_batches", -1, "at least 0"),
    (TrainConfig, "oscillation_freeze", 1.5, "from 0 to 1"),
    (TrainConfig, "portion_strategy", "larges", "one of pruning, random"),
    (TrainConfig, "scheme", "inq9", "weight bits must be one of 2, 3"),
    (TrainConfig, "scheme", "inq6a8", "pass 32-bit sums"),
    (TrainConfig, "hysteresis", -0.1, "at least 0"),
    (TrainConfig, "hysteresis_mode", "lop", "'loop'"),
    *[(TrainConfig, "lr", value, "positive") for value in (0, -1.0, NAN, INF)],
    (TrainConfig, "momentum", NAN, "at least 0"),
    (TrainConfig, "weight_decay", -1e-4, "at least 0"),
    (TrainConfig, "schedule", "cosin", "'cosine'"),
    (TrainConfig, "milestones", (0.3, 60), "got 60"),
    (TrainConfig, "milestones", (NAN,), "got nan"),
    (TrainConfig, "warmup", INF, "at least 0"),
    (TrainConfig, "epochs", 0, "at least 1"),
    (TrainConfig, "float_epochs", -1, "at least 0"),
    (TrainConfig, "batch_size", 0, "at least 1"),
    (TrainConfig, "seed", -1, "at least 0"),
    (QuantizeConfig, "scheme", "int8", "unknown scheme"),
    (QuantizeConfig, "model", "lenet5", "'lenet'"),
    (QuantizeConfig, "dataset", "cifar", "'cifar10'"),
    (QuantizeConfig, "image_size", -3, "at least 1"),
    (QuantizeConfig, "calib", 0, "at least 1"),
    (QuantizeConfig, "weight_range", "max", "'minmax'"),
    (QuantizeConfig, "act_range", "msee", "'mse'"),
    *[(QuantizeConfig, "percentile", value, "above 50") for value in (50, 100.1, NAN)],
    (QuantizeConfig, "tolerance", -1.0, "at least 0"),
    (QuantizeConfig, "seed", -1, "at least 0"),
    (QuantizeConfig, "batch_size", 0, "at least 1"),
    (QuantizeConfig, "override", ("x",), "PATTERN=SCHEME"),
    (BenchConfig, "batch", (), "at least 1"),
    (BenchConfig, "batch", (1, 0), "at least 1"),
    (BenchConfig, "dataset", "mnits", "'mnist'"),
    *[(BenchConfig, "seconds", value, "positive") for value in (0, NAN, INF)],
]


@pytest.mark.parametrize(("kind", "key", "value", "hint"), BAD)
def test_bad_values(kind: type, key: str, value: Any, hint: str) -> None:
    with pytest.raises(ValueError) as error:
        kind(**{key: value})
    assert hint in one_sentence(error)
    with pytest.raises(ValueError, match=r"^my file: "):
        from_dict(kind, {key: list(value) if isinstance(value, tuple) else value}, where="my file")


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        ({"optimizer": "hysteresis-sgd", "scheme": "w2a2"}, "1-bit"),
        ({"optimizer": "hysteresis-sgd", "weight_quantizer": "lsq"}, "scaled-sign"),
        ({"hysteresis": 0.5}, "hysteresis is of optimizer hysteresis-sgd, but the optimizer is sgd"),
        ({"optimizer": "adamw", "hysteresis_mode": "one-step"}, "hysteresis_mode is of optimizer hysteresis-sgd"),
        ({"hysteresis_relative": True}, "hysteresis_relative is of optimizer"),
        ({"momentum": 1.0}, "momentum must be below 1, got 1.0"),
        ({"pact_start": "published"}, "pact_start is of act_quantizer pact, but it is lsq"),
        ({"scheme": "inq5", "optimizer": "qtadamw"}, "method inq needs an optimizer that moves each weight by itself"),
        ({"weight_quantizer": "scaled-sign", "scheme": "w4a4"}, "use lsq"),
        ({"optimizer": "qsgd", "resolution": "scheduled", "qp": 4}, "of resolution on-demand, log-t"),
        ({"optimizer": "qtadamw", "resolution": "log-t", "shared_resolution": False}, "of resolution on-demand, but"),
        ({"optimizer": "qtadamw", "compensation_tau0": 0.2}, "of resolution scheduled, but"),
        ({"optimizer": "adamw", "compensation_kappa": 1.0}, "but the optimizer is adamw"),
        ({"method": "inq", "scheme": "w4a4"}, "got method inq and scheme w4a4"),
        ({"method": "qat", "scheme": "inq5"}, "got method qat and scheme inq5"),
        ({"portions": (0.5, 1.0)}, "are of method inq"),
        ({"scheme": "inq5", "portions": (0.5, 0.4, 1.0)}, "increasing portions"),
        ({"scheme": "inq5", "portions": (0.5, 0.9)}, "end at 1"),
        ({"scheme": "inq5", "epochs": 3}, "at least the 4 portions"),
        ({"scheme": "inq5", "ema": 0.9}, "do not go with method inq"),
        ({"distill": 0.5}, "needs a float teacher"),
        ({"distill": 0.5, "scheme": "float", "teacher": "f.pth"}, "the scheme is float"),
        ({"teacher": "f.pth"}, "only with --distill"),
        ({"weight_regularization": 0.1, "scheme": "w2a2"}, "one-bit weights"),
        ({"scheme": "w4a4", "override": ("conv2=inq3",)}, "needs an inq scheme"),
        ({"ema": 0.9, "optimizer": "hysteresis-sgd"}, "ema does not go with hysteresis-sgd"),
        ({"oscillation_freeze": 0.02, "scheme": "w16a4"}, "of quantized weights"),
        ({"progressive": ("w4a4:1",), "scheme": "float"}, "lead to a quantized scheme"),
    ],
)
def test_values_that_do_not_go_together(values: dict[str, Any], hint: str) -> None:
    with pytest.raises(ValueError) as error:
        TrainConfig(**values)
    assert hint in one_sentence(error)


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        (TrainConfig, "epochs", "3"),
        (TrainConfig, "epochs", 3.0),
        (TrainConfig, "epochs", True),
        (TrainConfig, "epochs", None),
        (TrainConfig, "lr", "0.1"),
        (TrainConfig, "lr", False),
        (TrainConfig, "compile", 1),
        (TrainConfig, "model", 20),
        (TrainConfig, "first_last", 8),
        (TrainConfig, "override", "conv1=w1a2"),
        (TrainConfig, "override", [1]),
        (TrainConfig, "milestones", [0.1, "0.2"]),
        (TrainConfig, "init", ["a"]),
        (BenchConfig, "batch", [1.5]),
    ],
)
def test_from_dict_checks_types(kind: type, key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"config: {key} must be") as error:
        from_dict(kind, {key: value})
    assert repr(value if not isinstance(value, list) or key == "init" else value[-1]) in one_sentence(error)


@pytest.mark.parametrize(
    "config",
    [
        TrainConfig(),
        QuantizeConfig(),
        BenchConfig(),
        TrainConfig(
            model="my.module:net", stage_act_bits=(4, 2), override=("a=b=w1a2",), lr=1, init="x.pt", image_size=9
        ),
        BenchConfig(batch=(3,), float_file="f"),
    ],
)
def test_to_dict_round_trip(config: Any) -> None:
    plain = json.loads(json.dumps(to_dict(config)))
    assert from_dict(type(config), plain) == config


def test_from_dict_unknown_key() -> None:
    with pytest.raises(ValueError, match=r"unknown key 'epoch'; did you mean 'epochs'"):
        from_dict(TrainConfig, {"epoch": 3})


def test_from_json(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"_comment": "why", "_comment_2": 3, "epochs": 3, "milestones": [0.5]}))
    assert from_json(TrainConfig, path) == TrainConfig(epochs=3, milestones=(0.5,))


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[1]", "one JSON object, got list"),
        (b'{"eopchs": 1}', "'epochs'"),
    ],
)
def test_from_json_errors(tmp_path: Path, content: bytes, hint: str) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        from_json(TrainConfig, path)
    assert hint in one_sentence(error) and str(path) in str(error.value)


def test_from_json_without_a_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"does not exist"):
        from_json(TrainConfig, tmp_path / "none.json")
    with pytest.raises(ValueError, match=r"cannot be read"):
        from_json(TrainConfig, tmp_path)


def test_parse_override() -> None:
    assert parse_override("layer3.*=w2a4") == ("layer3.*", Scheme(2, 4))
    assert parse_override("a=b=float") == ("a=b", Scheme())


def test_every_choice_has_a_known_default() -> None:
    for kind in (TrainConfig, QuantizeConfig, BenchConfig):
        for field in kind.__dataclass_fields__.values():
            if words := choices(field):
                # some settings are of some methods only
                others = {
                    "resolution": {"optimizer": "qsgd"},
                    "portion_strategy": {"scheme": "inq5"},
                    "hysteresis_mode": {"optimizer": "hysteresis-sgd"},
                    "pact_start": {"act_quantizer": "pact"},
                }.get(field.name, {})
                assert field.default in words and all(
                    kind(**others | {field.name: word}) for word in words if word != "hysteresis-sgd"
                )


def test_import_loads_no_torch() -> None:
    code = "import sys, tq.config; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
