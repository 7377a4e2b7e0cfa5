"""Image -> background probability, without learning: geodesic distance and robust background detection."""
