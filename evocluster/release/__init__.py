"""What may serve: evidence in, decisions out. Pure functions; whoever calls them does the I/O."""
