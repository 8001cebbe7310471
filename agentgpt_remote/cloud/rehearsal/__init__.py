"""A rehearsal of the cloud on this machine: the same requests, the same containers, no Docker and no AWS."""
