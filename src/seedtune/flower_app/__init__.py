"""The app that Flower runs: a server that drives a run, a client that hands messages to a node's worker."""
