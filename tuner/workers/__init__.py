"""Processes that train: started, spoken with, metered, and replaced when they die.

`pool` starts them and speaks with them, `runner` is the Runner on them, `served` is what a program
that runs in one does first and last. Which program that is, a pool is told.
"""
