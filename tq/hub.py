"""A packed file as a folder that model hubs understand: model.safetensors, config.json and README.md.

The weights are a byte for byte copy, so `tq.load(folder / "model.safetensors")` reads them anywhere; config.json says
in plain JSON what the file's own metadata says, with compressed-tensors' field names for the quantization
(github.com/vllm-project/compressed-tensors).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import tq
from tq.atomic import atomic
from tq.checkpoint import Account, inspect
from tq.file_format import PACKED, read
from tq.file_info import Info
from tq.models import BUILDERS

FILES = ("model.safetensors", "config.json", "README.md")


def write(source: Path, folder: Path) -> dict[str, Any]:
    """Write the three files; returns their sizes in bytes by name.

    Raises ValueError: the source is not a tq file, or the folder holds something else; OSError.
    """
    metadata = read(source)[1]
    account = inspect(source)
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"config.json": _config(account.info, metadata), "README.md": _card(account, metadata)}
    for name, text in texts.items():
        with atomic(folder / name) as file:
            file.write(text.encode())
    with open(source, "rb") as weights, atomic(folder / FILES[0]) as file:
        shutil.copyfileobj(weights, file)
    return {name: (folder / name).stat().st_size for name in FILES}


def check_folder(folder: Path) -> None:
    """Only a folder that is empty, absent or one of ours is written to."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"expected --hub to name a folder, got the file {folder}; give another name")
    strangers = sorted(p.name for p in folder.iterdir() if p.name not in FILES) if folder.is_dir() else []
    if strangers:
        raise ValueError(
            f"expected an empty folder or one with {', '.join(FILES)} alone, got {folder} with {strangers[0]}; "
            "give another name"
        )


def _config(info: Info, metadata: dict[str, str]) -> str:
    model = info.model or {}
    fields = {
        "model_type": "tq",
        "architectures": [model.get("name", "custom")],
        "model": info.model,
        "quantization_config": json.loads(metadata.get("quantization_config", "null")),
        "preprocess": info.data,
        "id2label": {str(i): name for i, name in enumerate(info.classes)},
        "num_labels": len(info.classes),
        "metrics": info.metrics,
        "tq_version": tq.__version__,
    }
    return json.dumps(fields, indent=2, ensure_ascii=False) + "\n"


def _card(account: Account, metadata: dict[str, str]) -> str:
    info = account.info
    name = (info.model or {}).get("name", "network")
    bits = sorted({row.bits for row in account.rows if row.name.endswith(PACKED)})
    ratio = account.float_bytes / account.file_bytes
    measured = _measured(info)
    ours = (info.model or {}).get("name") in BUILDERS
    load = 'tq.load("model.safetensors")' if ours else 'tq.load("model.safetensors", model=your_float_network)'
    flag = "" if ours else " --model PACKAGE.MODULE:FACTORY"
    what = f"packed to {' and '.join(bits)} (weight and activation bits)" if bits else "with float weights"
    return f"""---
library_name: tq
pipeline_tag: image-classification
tags: [quantization, image-classification]
---
# {name} {", ".join(bits)}

An image classifier ({name}, {len(info.classes) or "unknown number of"} classes) {what}.

| | |
| --- | --- |
| file | {account.file_bytes:,} bytes, 1/{ratio:.1f} of float ({account.float_bytes:,} bytes) |
| accuracy | {measured} |
| images | {_images(info)} |
| sha256 (of the file with these digits as zeros) | `{metadata["sha256"]}` |

## Load

```python
import tq

model = {load}  # nothing is unpickled; every byte is checked
logits = model(images)  # float32 [N, C, H, W], (pixel / 255 - mean) / std
```

`tq predict model.safetensors IMAGE{flag}` classifies image files, `tq inspect model.safetensors` accounts for
every byte.
"""


def _measured(info: Info) -> str:
    metrics = info.metrics
    if "accuracy" not in metrics:
        return "not in the file"
    of = (
        f" ({metrics['correct']:,} of {metrics['total']:,} test images"
        if {"correct", "total"} <= metrics.keys()
        else ""
    )
    of += f" of {info.data['name']})" if of and "name" in info.data else ")" * bool(of)
    before = f"; float: {metrics['float_accuracy']:.2f} %" if "float_accuracy" in metrics else ""
    return f"{metrics['accuracy']:.2f} %{of}, measured from this file's weights{before}"


def _images(info: Info) -> str:
    data = info.data
    if not {"size", "channels"} <= data.keys():
        return "not in the file"
    normal = f", mean {_numbers(data['mean'])}, std {_numbers(data['std'])}" if {"mean", "std"} <= data.keys() else ""
    crop = f", the centre after the shorter side is resized to {data['resize']}" if data.get("resize") else ""
    return f"{data['channels']} x {data['size']} x {data['size']}{crop}{normal}"


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{v:.4f}" for v in values)
