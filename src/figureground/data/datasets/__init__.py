"""Published data sets: what each measures and where it is, and its original annotations as class-agnostic truth."""
