"""How good masks are: average precision, CorLoc, saliency."""
