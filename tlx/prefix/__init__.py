"""The frozen prefix of a backbone: its last layer, its features, their cache, and the input of each phase."""
