"""The HTTP API: dialects over the events of the supervisor."""
