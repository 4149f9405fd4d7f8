"""Zeroth-order optimisation: directions, perturbed evaluation, estimators, updates, trajectory."""
