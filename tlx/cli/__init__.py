"""`tlx`: words on the command line become an action."""
