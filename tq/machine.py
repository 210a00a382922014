"""The device that a command runs on, and what a run or a benchmark says about it and about what did not run there."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch


def pick_device(name: str) -> torch.device:
    """auto: CUDA if there is one. Raises ValueError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"unknown device {name!r}: expected auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device {name} is not supported: expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise ValueError(f"device {name} was asked for, but this torch sees {found} CUDA devices; use --device cpu")
    return device


def about(device: torch.device) -> dict[str, Any]:
    """{"device", "cpu", "threads"}: the GPU's name or "cpu", the CPU's name, torch's threads."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
    }


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's and how many threads of it are used."""
    said = about(device)
    return said["device"] if device.type == "cuda" else f"{said['cpu']}, threads: {said['threads']}"


def reason(error: Exception) -> str:
    """Why a contender did not run, in one line."""
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, ModuleNotFoundError) and said == ["not installed"]:
        return "not installed"
    if "InvalidCxxCompiler" in type(error).__name__ or any(
        "compiler found" in line or "InvalidCxxCompiler" in line for line in said
    ):
        return "not run: torch.compile found no working C++ compiler; install g++ or clang"
    return f"not run: {type(error).__name__}: {said[0] if said else 'no reason given'}"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
