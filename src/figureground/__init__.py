"""figureground: find objects in photographs without labels.

Example:
    >>> import figureground as fg
    >>> sorted(fg.__all__)
    ['Instances', 'PatchFeatures', '__version__', 'label', 'load_detector', 'load_image']
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from figureground.data.images import load_image
    from figureground.stages.detecting import load_detector
    from figureground.stages.labeller import label
    from figureground.structures import Instances, PatchFeatures

__version__ = "0.1.0"

# Imported on first use: `import figureground` does not wait for torch.
_LAZY = {
    "label": "figureground.stages.labeller",
    "load_detector": "figureground.stages.detecting",
    "load_image": "figureground.data.images",
    "Instances": "figureground.structures",
    "PatchFeatures": "figureground.structures",
}

__all__ = ["Instances", "PatchFeatures", "__version__", "label", "load_detector", "load_image"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'figureground' has no attribute {name!r}")
