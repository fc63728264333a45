"""Shared memory: segments that hold a whole state, and the snapshots kept in them."""
