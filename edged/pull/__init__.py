"""From the sources that a plan is missing to files on this box."""
