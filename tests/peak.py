"""The most memory that a process has had."""

import resource
import sys
from pathlib import Path


def peak_kibibytes() -> int:
    """Of this process alone: what getrusage tells on Linux is at least its parent's at the fork."""
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
