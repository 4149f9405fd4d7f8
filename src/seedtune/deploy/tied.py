"""`python -m seedtune.deploy.tied PARENT COMMAND...`: runs COMMAND, and kills it and all that it started with PARENT.

A process that is killed can clean up nothing, so this one, which leads the group of COMMAND, is told by the kernel when
its parent has ended, however it ended (Linux), and then kills the group. Killed itself, it takes COMMAND along. It ends
when COMMAND does, in the same way. On other systems only a parent that ends in order takes its processes along.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    signal.signal(signal.SIGTERM, lambda *_: _end_without(parent))  # or asked by the parent: then COMMAND is, too
    _when_parent_ends(signal.SIGTERM)
    _end_without(parent)  # it ended before the kernel was told
    keeper = os.getpid()
    child = os.fork()
    if not child:
        _become(command, keeper)
    _end_as(os.waitpid(child, 0)[1])


def _when_parent_ends(number: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


def _end_without(parent: int) -> None:
    if os.getppid() != parent:
        os.killpg(0, signal.SIGKILL)


def _become(command: list[str], keeper: int) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):  # not ignored, wherever this was started
        signal.signal(number, signal.SIG_DFL)
    _when_parent_ends(signal.SIGKILL)
    if os.getppid() == keeper:
        try:
            os.execvp(command[0], command)
        except OSError as error:
            print(f"{command[0]}: cannot be started: {error.strerror}", file=sys.stderr, flush=True)
    os._exit(127)


def _end_as(status: int) -> None:
    if os.WIFSIGNALED(status):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
