"""The promises of a tuner that runs overnight, put to the test again and again.

Each campaign takes a number and a seed. `scripts/torture.py` runs all of them at their nightly
length and writes the table; `test_torture.py` runs a short one of each.
"""
