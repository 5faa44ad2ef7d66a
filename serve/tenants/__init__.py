"""Who may call, under which name, and how many visual tokens a minute: keys and budgets.

Knows digests, names and clocks; knows nothing of requests, HTTP or Ray.
"""
