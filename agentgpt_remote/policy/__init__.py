"""The GPT: its model, its bundle, and acting with it in process or through a server."""
