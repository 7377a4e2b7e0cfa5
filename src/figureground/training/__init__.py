"""The one loop that trains every model, and what it needs: checkpoints, a log, an order of the data."""
