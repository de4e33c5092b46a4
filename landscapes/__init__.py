"""Landscapes: curves and costs that can stand in for a device, and the runner that replays them."""
