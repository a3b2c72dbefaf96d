"""Memory of this process."""

import psutil


def memory_bytes() -> dict[str, int]:
    """Bytes of this process: `private`, and `proportional`, which includes its share of shared memory.

    From `/proc/self/smaps_rollup` of Linux; empty on other systems.
    """
    counted = psutil.Process().memory_full_info()
    return {"private": int(counted.uss), "proportional": int(getattr(counted, "pss", 0))}
