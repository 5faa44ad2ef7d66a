"""Offline tools: train M3 models, label with every scale, fit, evaluate and promote routers.

Importing the package loads nothing; each tool imports what it needs.
"""
