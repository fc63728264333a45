"""The commands of `mtf_slurm.testing.FakeSlurm`, without a daemon.

All state lies in ``state.json`` of its folder. What is taken is what this package and its
followers use of Slurm; anything else is refused, so that nothing seems to work that was
never looked at.
"""
