"""Kinds of work; each is an async context manager that gives a round. See catalogue.py."""
