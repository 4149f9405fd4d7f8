"""What may not be learned of a single client: secure sums, and differential privacy.

It knows neither models nor messages; libraries of cryptography are imported here and nowhere else.
"""
