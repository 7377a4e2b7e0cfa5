"""Networks that give every pixel an embedding, and the losses they learn by."""
