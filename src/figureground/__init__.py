"""figureground: find objects in photographs without labels."""

__version__ = "0.1.0"
