"""How much memory this process takes."""

import psutil


def memory_bytes() -> dict[str, int]:
    """Bytes of this process: `private` to it, and its part of what it shares with others (`proportional`, all in all).

    As Linux counts them in `/proc/self/smaps_rollup`; nothing elsewhere.
    """
    counted = psutil.Process().memory_full_info()
    return {"private": int(counted.uss), "proportional": int(getattr(counted, "pss", 0))}
