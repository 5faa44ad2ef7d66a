"""A router tried beside the one in force: as a canary, which answers, or as a shadow.

`assignment` draws the sessions that a canary answers, `on_trial` follows the registry's word about
what is tried, `guard` tells when a canary fails, `shadowing` what a shadow would have done.
"""
