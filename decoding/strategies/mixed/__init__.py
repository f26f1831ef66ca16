"""Strategies whose rows read the same tokens in several contexts or models and make one distribution of what they say.

All are a `LockStep` (`parts/lock_step.py`) and say only how.
"""
