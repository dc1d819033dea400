"""A small Hub on loopback, and the tests that speak to it through the real clients."""
