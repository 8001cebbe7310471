"""Remote environments as Gymnasium environments: the client side of the wire."""
