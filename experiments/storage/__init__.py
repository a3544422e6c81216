"""Files that must survive a kill: checkpoints, locks, resumption."""
