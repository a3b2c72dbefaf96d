"""How much memory this process takes."""

import re
from pathlib import Path


def memory_bytes() -> dict[str, int]:
    """Bytes of this process: `private` to it, and its part of what it shares with others (`proportional`, all in all).

    As Linux counts them in `/proc/self/smaps_rollup`; zeros elsewhere.
    """
    rollup = Path("/proc/self/smaps_rollup")
    text = rollup.read_text(encoding="utf-8") if rollup.exists() else ""
    found = {key: 1024 * int(value) for key, value in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
    private = found.get("Private_Clean", 0) + found.get("Private_Dirty", 0)
    return {"private": private, "proportional": found.get("Pss", 0)}
