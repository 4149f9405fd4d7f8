"""The federation: rounds, clients, messages and protocols. Start with `rounds`."""
