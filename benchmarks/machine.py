"""The machine a benchmark ran on: nothing in, a dict for the report out.

Figures of two machines are not to be compared; ratios are, with care.
"""

import os
import platform
from pathlib import Path
from typing import Any

import torch

__all__ = ["describe_machine"]

FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # processor flags that decide how fast a matrix product is


def describe_machine() -> dict[str, Any]:
    """Processor, cores, load, accelerator, and the versions that matter."""
    cpu = processor()
    return {
        "processor": cpu.get("model name", platform.processor()),
        "flags": [flag for flag in FLAGS if flag in cpu.get("flags", "").split()],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def processor() -> dict[str, str]:
    """What the system says of its first processor; empty where it says nothing."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
