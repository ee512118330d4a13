"""The HTTP front end, the modes and the command line; everything that runs a model is in the engine process."""
