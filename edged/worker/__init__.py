"""The child process: one model, one engine, one socket to the daemon."""
