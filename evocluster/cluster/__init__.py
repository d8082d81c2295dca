"""The cluster room: lends the engine a whole Ray cluster."""
