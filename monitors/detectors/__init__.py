"""Detectors: one signal of many lanes in, alarms out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from memory.errors import ConfigurationError
from monitors.detectors.adwin import ADWIN
from monitors.detectors.cusum import CUSUM
from monitors.detectors.detector import Detector
from monitors.detectors.ewma import EWMA
from monitors.detectors.never import NoDetector
from monitors.detectors.page_hinkley import PageHinkley
from monitors.detectors.river_detector import RiverDetector, river_classes
from monitors.detectors.shewhart import Shewhart
from monitors.detectors.slips import read_settings
from monitors.detectors.threshold import Threshold

__all__ = [
    "ADWIN",
    "CUSUM",
    "DETECTORS",
    "EWMA",
    "AnyDetector",
    "Detector",
    "NoDetector",
    "PageHinkley",
    "RiverDetector",
    "Shewhart",
    "Threshold",
    "parse_detector",
    "river_classes",
]

AnyDetector = Annotated[
    ADWIN | CUSUM | EWMA | NoDetector | PageHinkley | RiverDetector | Shewhart | Threshold,
    Field(discriminator="name"),
]
"""A field of a pydantic model that holds some detector's settings, told apart by `name`."""

DETECTORS: dict[str, type[Detector]] = {
    "adwin": ADWIN,
    "cusum": CUSUM,
    "ewma": EWMA,
    "never": NoDetector,
    "page_hinkley": PageHinkley,
    "river": RiverDetector,
    "shewhart": Shewhart,
    "threshold": Threshold,
}
"""The detectors by the name that settings use."""


def parse_detector(data: str | Mapping[str, Any]) -> Detector:
    """Return the detector that a name, or a name with settings, asks for.

    Parameters
    ----------
    data
        ``"page_hinkley"`` for the defaults, or a mapping such as ``{"name": "river", "detector": "ADWIN"}``.

    Raises
    ------
    ConfigurationError
        No such detector, an unknown key, or a value out of range.

    Examples
    --------
    >>> parse_detector({"name": "shewhart", "width": 2.5}).width
    2.5
    >>> parse_detector("page_hinkly")
    Traceback (most recent call last):
    ...
    memory.errors.ConfigurationError: expected a detector with 'name' one of adwin, cusum, ewma, never, page_hinkley,
    river, shewhart, threshold, got name: 'page_hinkly'; did you mean 'page_hinkley'?
    """
    if isinstance(data, str):
        if data not in DETECTORS and data in river_classes():
            raise ConfigurationError(
                f"expected a detector among {', '.join(DETECTORS)}, got {data!r}; "
                f"that is one of river's: {{'name': 'river', 'detector': {data!r}}}"
            )
        data = {"name": data}
    return read_settings(data, DETECTORS, "name", "a detector")
