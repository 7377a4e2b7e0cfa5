"""Bytes on disk: atomic writes, shards, JSON lines, one run at a time in a folder."""
