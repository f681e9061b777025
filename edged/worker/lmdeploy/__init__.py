"""LMDeploy's engine: `Generate` in, events out, through its `AsyncEngine`."""
