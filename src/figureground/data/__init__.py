"""Images and annotations: finding, decoding, COCO files."""
