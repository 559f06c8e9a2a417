"""The frozen prefix of a backbone: where it ends, its features, their cache, and the inputs of a phase."""
