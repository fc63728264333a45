"""Run experiments as processes of this machine: see `mtf_gridsearch.local.launcher`."""
