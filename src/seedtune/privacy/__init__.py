"""What the server may not learn of a single client: secure sums.

It knows neither models nor messages; libraries of cryptography are imported here and nowhere else.
"""
