"""Detectors learned from masks: an image to instances, a batch with targets to a dictionary of losses."""

from figureground.detectors.checkpoint import load, save
from figureground.detectors.pretrained import load_backbone
from figureground.detectors.registry import DETECTORS, DetectorConfig, configure, create
from figureground.detectors.targets import Target

__all__ = ["DETECTORS", "DetectorConfig", "Target", "configure", "create", "load", "load_backbone", "save"]
