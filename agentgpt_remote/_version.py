"""Version of the distribution; read by the build and by the handshake."""

__version__ = "0.1.0"
