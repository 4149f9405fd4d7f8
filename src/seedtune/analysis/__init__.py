"""Probes: what can be measured of a model, a task and a partition before, or after, a run. Nothing here moves weights.

A probe answers one question about the loss around the weights as they stand: how curved it is, at which scale it is
best perturbed, how unlike the clients are, which learning rates the theory allows. Each returns a `Finding`: values
with intervals, tables, the cost in passes over the probed examples, and notes that say how to read them.
"""
