"""The forms' fields, parsing, verdicts and command lines: all from the config dataclasses, without a screen."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tq.config import BenchConfig, QuantizeConfig, TrainConfig
from tui import form
from tui.form import FORMS, Form


def test_form_has_every_field_with_its_help_and_default() -> None:
    rows = {row.name: row for row in form.fields(TrainConfig)}
    assert list(rows) == list(TrainConfig.__dataclass_fields__)
    assert all(row.help for row in rows.values())
    assert rows["lr"].help.startswith("peak learning rate")
    assert rows["optimizer"].choices == ("sgd", "adam", "adamw", "hysteresis-sgd", "qsgd", "qtadam", "qtadamw")
    assert form.build(TrainConfig, {name: row.default for name, row in rows.items()}) == TrainConfig()


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ({}, []),
        ({"epochs": " 3 ", "lr": "1e-3"}, ["--lr", "0.001", "--epochs", "3"]),
        ({"compile": "False", "amp": "True"}, ["--no-compile", "--amp"]),
        ({"milestones": "0.5, 0.75"}, ["--milestones", "0.5", "0.75"]),
        ({"override": "'layer3.*=w2a4' fc=float"}, ["--override", "layer3.*=w2a4", "fc=float"]),
        ({"data": "/a b/c", "image_size": "64"}, ["--data", "/a b/c", "--image-size", "64"]),
    ],
)
def test_form_gives_the_command_line_of_what_was_typed(typed: dict[str, str], words: list[str]) -> None:
    assert form.argv(form.build(TrainConfig, typed)) == words


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ({"epochs": "1.5"}, "epochs must be a whole number, got '1.5'"),
        ({"epochs": ""}, "epochs needs a value; the default is 10"),
        ({"lr": "fast"}, "lr must be a number, got 'fast'"),
        ({"batch_size": "0"}, "batch_size must be at least 1, got 0"),
        ({"model": "resnet21"}, "did you mean 'resnet"),
        ({"override": "'x"}, "override: a quote is not closed"),
        ({"stage_act_bits": "4 x"}, "stage act bits must be a whole number, got 'x'"),
    ],
)
def test_form_says_in_one_sentence_what_is_wrong(typed: dict[str, str], sentence: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        form.build(TrainConfig, typed)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def typed(command: str, **changes: str) -> dict[str, str]:
    """The texts of a form that was just opened, with `changes`."""
    return {f.name: f.default for f in FORMS[command].fields} | changes


@pytest.mark.parametrize(
    ("command", "changes", "words"),
    [
        ("train", {"epochs": "3"}, ["train", "--epochs", "3"]),
        ("quantize", {"file": " last "}, ["quantize", "last"]),
        (
            "quantize",
            {"file": "a b.pt", "out": "x.safetensors", "target_size": "60KB"},
            ["quantize", "a b.pt", "--out", "x.safetensors", "--target-size", "60KB"],
        ),
        ("bench", {"file": "last", "batch": "1 8"}, ["bench", "last", "--batch", "1", "8"]),
        ("bench", {"file": "last", "peers": "openvino"}, ["bench", "last", "--peers", "openvino"]),
    ],
)
def test_verdict_of_a_right_form_is_its_command_line(command: str, changes: dict[str, str], words: list[str]) -> None:
    verdict = FORMS[command].judge(typed(command, **changes))
    assert verdict.errors == {}
    assert list(verdict.words) == words
    assert isinstance(verdict.config, FORMS[command].config)


@pytest.mark.parametrize(
    ("changes", "last", "errors"),
    [
        ({"lr": "x", "epochs": "y"}, "", {"lr": "lr must be a number", "epochs": "epochs must be a whole number"}),
        ({"lr": "x", "scheme": "w3a2"}, "", {"lr": "lr must be a number", "scheme": "weight bits must be one of"}),
        # two fields together are wrong: the one that was touched last is told
        ({"scheme": "w4a4", "optimizer": "hysteresis-sgd"}, "scheme", {"scheme": "optimizer hysteresis-sgd trains"}),
        ({"scheme": "w4a4", "optimizer": "hysteresis-sgd"}, "optimizer", {"optimizer": "trains 1-bit weights"}),
        ({"qp": "3"}, "qp", {"qp": "qp is of optimizer qsgd"}),
        ({"override": "x=w9a9"}, "", {"override": "weight bits must be one of"}),
    ],
)
def test_verdict_blames_the_field_that_is_wrong(changes: dict[str, str], last: str, errors: dict[str, str]) -> None:
    verdict = FORMS["train"].judge(typed("train", **changes), last=last)
    assert verdict.config is None
    assert verdict.words == ()
    assert list(verdict.errors) == list(errors)
    for name, part in errors.items():
        assert part in verdict.errors[name]
        assert "\n" not in verdict.errors[name]


def test_verdict_asks_whether_the_file_exists() -> None:
    verdict = FORMS["bench"].judge(typed("bench", file="nope"), exists=lambda text: f"there is no {text}")
    assert verdict.errors == {"file": "there is no nope"}


def test_a_sentence_that_no_single_field_explains_is_kept() -> None:
    @dataclass(frozen=True)
    class Odd:
        a: int = 1
        """one"""

        def __post_init__(self) -> None:
            raise ValueError("never right")

    assert Form("odd", Odd).judge({"a": "1"}).errors == {"": "never right"}


def test_long_forms_fold_and_new_fields_land_in_the_section_that_they_stand_in() -> None:
    rows = {f.name: f for f in FORMS["train"].fields}
    assert {f.name for f in rows.values() if f.common} >= {"model", "dataset", "scheme", "optimizer", "lr", "epochs"}
    assert (rows["momentum"].section, rows["momentum"].common) == ("learning rate", False)
    assert rows["image_size"].section == "network and data"
    assert all(f.section for f in form.fields(QuantizeConfig))
    assert all(f.common for f in form.fields(BenchConfig)), "a short form hides nothing"
    assert len([f for f in rows.values() if f.common]) <= 10
    assert [f.name for f in form.fields(TrainConfig)] == list(TrainConfig.__dataclass_fields__)
