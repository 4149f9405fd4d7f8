"""Every study by name. The studies of one paper or question are in a file of their own; nothing here loads torch."""

from ..errors import ConfigError, unknown
from . import auto_rate, best_rank, by_layer, fedmezo, fedspzo, memory, robustness, signals
from .study import Study

OF = (fedmezo, fedspzo, robustness, best_rank, by_layer, signals, memory, auto_rate)
STUDIES = {study.name: study for each in OF for study in each.STUDIES}


def study_of(name: str) -> Study:
    """
    Raises:
        ConfigError: no such study, with the nearest known one.
    """
    if name not in STUDIES:
        raise ConfigError(unknown("study", name, STUDIES))
    return STUDIES[name]
