"""Follow jobs: what changes, why they wait, which nodes fail, how well they used what they got.

* `mtf_slurm.follow.monitor`: `JobMonitor`, changes as events, at few questions to Slurm
* `mtf_slurm.follow.reasons`: why a job waits, in words
* `mtf_slurm.follow.nodes`: nodes that fail again and again
* `mtf_slurm.follow.efficiency`: CPU, memory, GPUs and time, asked for and used
* `mtf_slurm.follow.schedule`: graphs of experiments, quotas, priorities
"""
