"""The service on Ray Serve.

`app` binds the parts, `stages` calls them, `cluster` and `service` run them.
"""
