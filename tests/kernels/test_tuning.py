"""The choice of tiles: what TQ_TUNE means, what is timed, and a store that survives damage and company."""

import itertools
import json
import multiprocessing
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from triton_kernels import tuning
from triton_kernels.launch import Launch
from triton_kernels.tuning import Config

SMALL, WIDE, HUGE = (
    Config((("BM", m), ("BN", n)), warps) for m, n, warps in ((16, 32, 4), (64, 256, 8), (256, 256, 8))
)
KEY = (4, 16, 4096, "codes")
ABOUT = {"device": "GPU X", "kernels": "abc"}


class Timer:
    """Plays the device: launches are [config], times are given by configuration, others do not run."""

    def __init__(self, times_ms: dict[Config, float]) -> None:
        self.times_ms, self.timed = times_ms, []  # type: tuple[dict[Config, float], list[Config]]

    def __call__(self, launches: Sequence[Any], seconds: float) -> float:
        assert 0 < seconds <= tuning.BUDGET_S
        (config,) = launches
        self.timed.append(config)
        return self.times_ms[config]


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TQ_TUNE", raising=False)
    tuning.open_store.cache_clear()
    return tmp_path / "tq"


def choose(
    timer: Timer | None, key: tuple[int | str, ...] = KEY, candidates: Sequence[Config] = (WIDE, HUGE)
) -> Config:
    def launch(config: Config) -> Sequence[Launch]:
        return [config]  # type: ignore[list-item]

    return tuning.choose("int_matmul", key, candidates, SMALL, launch, device="cpu", measure=timer)


def test_the_fastest_is_kept_for_later_processes(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timer = Timer({SMALL: 2.0, WIDE: 1.0})
    monkeypatch.setenv("TQ_TUNE", "on")
    assert choose(timer) == WIDE and timer.timed == [SMALL, WIDE, HUGE]
    assert choose(timer) == WIDE and len(timer.timed) == 3
    (path,) = cache_folder.glob("*.json")
    content = json.loads(path.read_text())
    assert content["about"]["torch"] == torch.__version__ and content["about"]["device"] == "cpu"
    assert content["choices"] == {
        "int_matmul 4 16 4096 codes": {
            "tiles": {"BM": 64, "BN": 256},
            "num_warps": 8,
            "num_stages": 3,
            "time_ms": 1.0,
            "skipped": 1,
        }
    }
    tuning.open_store.cache_clear()
    monkeypatch.setenv("TQ_TUNE", "cached")
    assert choose(timer) == WIDE and choose(timer, key=(4, 1)) == SMALL and len(timer.timed) == 3
    monkeypatch.setenv("TQ_TUNE", "off")
    assert choose(timer) == SMALL


def test_nothing_is_timed_or_written_unless_asked(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timer = Timer({})
    assert choose(timer) == SMALL
    monkeypatch.setenv("TQ_TUNE", "off")
    assert choose(timer) == SMALL
    # The interpreter on a CPU has no speed worth measuring.
    monkeypatch.setenv("TQ_TUNE", "on")
    assert choose(None) == SMALL
    assert not timer.timed and not cache_folder.exists()


def test_an_unknown_mode_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TQ_TUNE", "yes")
    with pytest.raises(ValueError, match="expected TQ_TUNE to be one of off, cached, on, got 'yes'"):
        choose(None)


def test_the_default_where_nothing_runs(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TQ_TUNE", "on")
    with pytest.warns(UserWarning, match=r"int_matmul .*: none of 3 configurations runs"):
        assert choose(Timer({})) == SMALL
    assert not cache_folder.exists()


def test_a_choice_that_is_no_candidate_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TQ_TUNE", "on")
    choose(Timer({HUGE: 1.0}))
    tuning.open_store.cache_clear()
    monkeypatch.setenv("TQ_TUNE", "cached")
    assert choose(None, candidates=[WIDE]) == SMALL
    assert choose(Timer({}), candidates=[WIDE]) == SMALL
    assert choose(Timer({}), candidates=[HUGE]) == HUGE


def test_the_default_can_win_and_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TQ_TUNE", "on")
    timer = Timer({SMALL: 1.0, WIDE: 1.0})
    assert choose(timer) == SMALL
    tuning.open_store.cache_clear()
    assert choose(timer) == SMALL and len(timer.timed) == 3


@pytest.mark.parametrize("version", ["torch", "triton", "kernels"])
def test_another_version_starts_anew(version: str, cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TQ_TUNE", "on")
    assert choose(Timer({WIDE: 1.0})) == WIDE
    if version == "kernels":
        monkeypatch.setattr(tuning, "_sources_hash", lambda: "changed")
    else:
        monkeypatch.setattr(f"{version}.__version__", "99.0")
    tuning.open_store.cache_clear()
    assert choose(Timer({HUGE: 1.0})) == HUGE
    assert len(list(cache_folder.glob("*.json"))) == 2


@pytest.mark.parametrize(
    "content, reason",
    [
        ("{", "it is damaged"),
        ("[]", "it is damaged"),
        (json.dumps({"about": ABOUT, "choices": {"op 1": {"tiles": {"BM": None}}}}), "it is damaged"),
        (json.dumps({"about": {"device": "GPU Y"}, "choices": {}}), "it was written for another device or version"),
    ],
)
def test_a_file_that_is_not_ours_is_rewritten(content: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "tiles.json"
    path.write_text(content)
    with pytest.warns(UserWarning, match=f"will be rewritten: {reason}") as caught:
        store = tuning.Store(path, ABOUT)
        assert store.get("op", (1,), [SMALL]) is None
        store.put("op", (1,), SMALL, 1.0, 0)
    assert len(caught) == 1
    assert tuning.Store(path, ABOUT).get("op", (1,), [SMALL]) == SMALL


def fill(path: Path, op: str, count: int) -> None:
    for i in range(count):
        tuning.Store(path, ABOUT).put(op, (i,), SMALL, 1.0, 0)


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "tiles.json"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=fill, args=(path, op, 20)) for op in ("a", "b")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    store = tuning.Store(path, ABOUT)
    assert all(store.get(op, (i,), [SMALL]) == SMALL for op, i in itertools.product("ab", range(20)))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["tiles.json", "tiles.lock"]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = tuning.Store(tmp_path / "file" / "tiles.json", ABOUT)
    with pytest.warns(UserWarning, match="tile choices are not kept: cannot write .*tiles.json"):
        store.put("op", (1,), SMALL, 1.0, 0)
    assert store.get("op", (1,), [SMALL]) == SMALL


def test_listeners_hear_when_timing_begins_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TQ_TUNE", "on")
    heard: list[tuple[str, tuple[int | str, ...], float | None]] = []
    with tuning.listening(lambda *event: heard.append(event)):
        choose(Timer({WIDE: 1.0}))
        choose(Timer({WIDE: 1.0}))
    choose(Timer({WIDE: 1.0}), key=(1,))
    assert [event[:2] for event in heard] == [("int_matmul", KEY)] * 2
    assert heard[0][2] is None and heard[1][2] is not None and heard[1][2] >= 0


def test_architectures_and_their_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tuning.architecture("cpu") == ("cpu", 0) and tuning.architecture("meta") == ("meta", 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    assert tuning.architecture("cuda") == ("cuda", 89)
    config = Config((), num_stages=4)
    assert tuning.fits(config, 40 * 1024, ("cuda", 80)) and not tuning.fits(config, 41 * 1024, ("cuda", 80))
    assert tuning.fits(config, 56 * 1024, ("cuda", 90)) and not tuning.fits(config, 25 * 1024, ("cuda", 120))
    assert tuning.fits(config, 16 * 1024, ("hip", 942)) and not tuning.fits(config, 17 * 1024, ("hip", 942))
    assert tuning.fits(config, 12 * 1024, ("cuda", 999)) and not tuning.fits(config, 13 * 1024, ("cuda", 999))
    assert tuning.fits(config, 1 << 30, ("meta", 0))


def test_this_machine_has_a_store_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tuning.open_store(torch.device("cpu")).get("op", (), []) is None
