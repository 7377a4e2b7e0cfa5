"""How good masks are: average precision, CorLoc, saliency, each with a bootstrap interval over images.

Values are fractions in [0, 1]; ``None`` where a measure is not defined.
"""
