"""Pure tensor functions: boxes, masks, run-length encoding, connected components."""
