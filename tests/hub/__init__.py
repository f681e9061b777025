"""A hub on loopback for tests of model files."""

from tests.hub.server import Hub, Repository, served

__all__ = ["Hub", "Repository", "served"]
