"""Speed, memory and quality, measured and written to `results/`."""
