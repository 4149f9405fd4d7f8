"""Every study by name. The studies of one paper or question are in a file of their own; nothing here loads torch."""

from ..errors import ConfigError, unknown
from . import fedmezo, fedspzo, robustness
from .study import Study

STUDIES = {study.name: study for study in (*fedmezo.STUDIES, *fedspzo.STUDIES, *robustness.STUDIES)}


def study_of(name: str) -> Study:
    """
    Raises:
        ConfigError: no such study, with the nearest known one.
    """
    if name not in STUDIES:
        raise ConfigError(unknown("study", name, STUDIES))
    return STUDIES[name]
