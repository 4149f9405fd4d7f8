"""Flower without talk: no telemetry, no look for newer versions, no installing at run time, and its absence explained.

`prepare` is to be called before anything of Flower or Ray is imported, `silence` after.
"""

import importlib
import importlib.util
import logging
import os
import warnings

from ..errors import ConfigError, install_hint

SWITCHES = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def prepare(*packages: str) -> None:
    """Sets the switches, for this process and those that it starts; what a user has set stays.

    Raises:
        ConfigError: Flower, or one of the other packages that are needed, is not installed.
    """
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
    for package in ("flwr", *packages):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"the package {package!r} is not installed: {install_hint('flower')}")
    with warnings.catch_warnings():  # what these bring along turns warnings on for everybody
        for package in ("flwr", *packages):
            importlib.import_module(package)


def silence() -> None:
    """What matters of Flower's log is said by whoever drives it."""
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
