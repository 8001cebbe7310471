"""The host: sessions that own environments, served over WebSocket."""
