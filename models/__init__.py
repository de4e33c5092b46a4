"""Real training: data, a small CNN, and the workers that train it on a device."""
