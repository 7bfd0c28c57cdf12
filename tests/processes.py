"""What has become of processes that a test started."""

import os
from pathlib import Path


def alive(pid: int) -> bool:
    """Neither gone nor, where /proc tells, waiting to be reaped by a process 1 that doesn't."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except FileNotFoundError:
        return not Path("/proc/self").exists()
