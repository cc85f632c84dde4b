"""Which models run on this machine, by the settings alone: a role with a URL is asked for upstream."""

from pathlib import Path

from app.checkpoint import FLAGS, Flag
from app.settings import Settings
from app.start import upstreams


def here(settings: Settings) -> dict[Flag, Path]:
    """The directories of the models that this machine runs, by role."""
    given = {"policy": settings.policy, "improver": settings.improver, "gap_reward": settings.gap_reward}
    remote = upstreams(settings)
    return {flag: path for flag in FLAGS if (path := given[flag]) and flag not in remote}


def engines(settings: Settings) -> int:
    """How many engines generate here."""
    generating = {path for flag, path in here(settings).items() if flag != "gap_reward"}
    return min(1, len(generating)) if settings.base else len(generating)
