"""Our own verbs: one typed function a file; jsonargparse turns its signature and docstring into flags and help."""
