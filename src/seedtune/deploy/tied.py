"""`python -m seedtune.deploy.tied PARENT COMMAND...`: becomes COMMAND, and is killed by the kernel when PARENT ends.

However the parent ends: Linux sends SIGKILL even where the parent itself was killed and could clean up nothing. On
other systems it is a plain start, and only a parent that ends in order takes its processes along.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the kernel was told
            sys.exit(1)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"{command[0]}: cannot be started: {error.strerror}")


if __name__ == "__main__":
    main()
