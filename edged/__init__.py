"""edged: the daemon that turns a Debian or Ubuntu box into an LLM appliance."""

__version__ = "0.1.0"
