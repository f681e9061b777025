"""Makes the environment that LMDeploy runs in, and takes it away again."""
