"""The processor: nothing in, what it can do out. One number: 2, the bf16 flags of which either makes bf16 the faster choice."""

from pathlib import Path

__all__ = ["processor_flags"]


def processor_flags() -> set[str]:
    """The CPU's feature flags, where the system says them."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return set()
    return set(next((line for line in text.splitlines() if line.startswith("flags")), "").split())
